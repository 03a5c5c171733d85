"""Logistic and ridge paths, neighbours and heads, against scikit-learn and the formulas of their sources."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from mixmim_bench.features.engines.torch import TorchReader
from mixmim_bench.machine import Machine
from mixmim_bench.probes import curvature, neighbours, rows, softmax
from mixmim_bench.probes.logistic import LogisticPath
from mixmim_bench.probes.neighbours import nearest
from mixmim_bench.probes.ridge import RidgePath
from mixmim_bench.probes.rows import Prepared, Stacked, Standardiser, stacked
from mixmim_bench.probes.softmax import SoftmaxLoss
from mixmim_bench.seeding import generator
from mixmim_bench.training.frozen import FrozenProbe

DINOV2_GRID = np.logspace(-6, 5, 45)


def digits(n=600):
    data = load_digits()
    return data.data[:n].astype(np.float32), data.target[:n]


def objective(coef, intercept, x, y, C):
    """Scikit-learn's, in float64, written down once more."""
    logits = x @ coef.T + intercept
    if len(coef) == 1:
        losses = np.logaddexp(0, -logits[:, 0] * (2 * y - 1))
    else:
        losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]
    return C * losses.sum() + 0.5 * (coef**2).sum()


def standardised(x):
    """Standardise in float64, by scikit-learn."""
    return StandardScaler().fit_transform(x.astype(np.float64))


def excess(path, x, y, Cs):
    """How far each objective is above that of scikit-learn in float64 at tol 1e-8, relatively."""
    scaler, inner, found = StandardScaler().fit(x.astype(np.float64)), standardised(x), []
    for place, C in enumerate(Cs):
        coef = path.coef_path_[place] * scaler.scale_
        intercept = path.intercept_path_[place] + path.coef_path_[place] @ scaler.mean_
        ours = objective(coef, intercept, inner, y, C)
        assert ours == pytest.approx(path.objective_path_[place], rel=1e-4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = LogisticRegression(C=C, tol=1e-8, max_iter=20000).fit(inner, y)
        found.append(ours / objective(theirs.coef_, theirs.intercept_, inner, y, C) - 1)
    return np.array(found)


def made_up(kind, n, d, k, seed):
    """Draw features and labels of one of the kinds that break solvers."""
    rng = np.random.default_rng(seed)
    frequencies = np.array([0.9] + [0.1 / (k - 1)] * (k - 1)) if kind == "imbalanced" else None
    y = rng.choice(k, n, p=frequencies)
    y[:k] = np.arange(k)
    centres = rng.standard_normal((k, d)) * (3.0 if kind == "separable" else 0.3)
    x = centres[y] + rng.standard_normal((n, d))
    if kind == "heavy-tailed":
        x = np.exp(x)
    if kind == "constant":
        x[:, 0], x[:, 1] = 1e4, 0.1
        x[:, 2] *= 1e-8
    if kind == "correlated":
        x = x @ (rng.standard_normal((d, d)) * np.arange(1.0, d + 1) ** -2)
    if kind == "nearly collinear":  # all but two directions have a variance of 1e-10 of the largest
        x = x[:, :2] @ rng.standard_normal((2, d)) + 1e-5 * x
    return x.astype(np.float32), y


KINDS = ("plain", "imbalanced", "separable", "heavy-tailed", "constant", "correlated", "nearly collinear")


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(KINDS),
    st.sampled_from([40, 150]),
    st.sampled_from([3, 20, 80]),
    st.sampled_from([2, 3, 12]),
    st.integers(0, 1000),
)
def test_objectives_are_at_most_a_ten_thousandth_above_scikit_learns(kind, n, d, k, seed):
    x, y = made_up(kind, n, d, k, seed)
    Cs = np.logspace(-6, 5, 6)
    path = LogisticPath(Cs).fit(x, y)
    assert path.unsolved_ == []
    assert excess(path, x, y, Cs).max() < 1e-4


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(KINDS),
    st.sampled_from([40, 150]),
    st.sampled_from([3, 20, 80]),
    st.sampled_from([2, 3, 6]),
    st.integers(0, 1000),
)
def test_the_gap_is_a_bound(kind, n, d, k, seed):
    """No objective is farther from the minimum than its gap, but for the rounding of float32."""
    x, y = made_up(kind, n, d, k, seed)
    path = LogisticPath(10.0 ** np.random.default_rng(seed).uniform(-6, 5, size=5)).fit(x, y)
    scaler, inner = StandardScaler().fit(x.astype(np.float64)), standardised(x).astype(np.float32)
    inner = inner.astype(np.float64)
    for place, C in enumerate(path.C_path_):
        coef = path.coef_path_[place] * scaler.scale_
        intercept = path.intercept_path_[place] + path.coef_path_[place] @ scaler.mean_
        ours = objective(coef, intercept, inner, y, C)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = LogisticRegression(C=C, tol=1e-10, max_iter=1000, solver="newton-cholesky").fit(inner, y)
        excess = ours - objective(theirs.coef_, theirs.intercept_, inner, y, C)
        assert excess <= path.gap_path_[place] + 2e-6 * ours


def test_the_gap_is_a_bound_at_every_point():
    """Far from the optimum too, whatever the intercepts are."""
    x, y = digits(200)
    prepared = Prepared(stacked(x), Standardiser(stacked(x)), "cpu")
    loss = SoftmaxLoss(prepared, y, 10, torch.float64)
    lowest = LogisticPath([0.1], tol=1e-9).fit(x, y).objective_path_[0]
    draw = torch.Generator().manual_seed(0)
    for scale in (0.0, 0.01, 0.1, 1.0):
        noise = torch.randn(loss.size, generator=draw, dtype=torch.float64)
        point = loss.evaluate(loss.origin() + scale * noise, 0.1)
        assert point.objective - lowest <= loss.bound(point)
        settled = loss.evaluate(loss.settle(point), 0.1)
        assert settled.objective <= point.objective and settled.gradient[:, -1].abs().max() < 1e-8
        assert settled.objective - lowest <= loss.bound(settled)
        weights = settled.gradient[:, :-1]
        assert loss.bound(settled) == pytest.approx(0.5 * float(weights.square().sum()), rel=1e-6)


def test_settling_that_does_not_help_does_not_end_the_search():
    """At a large C rounding is in the way of the intercepts, and conjugate gradients still get there."""
    r = np.random.default_rng(974186)
    x = r.standard_normal((12, 3))
    y = np.r_[0, 1, 2, r.integers(0, 3, 9)]
    x[6:] = x[:6]
    path = LogisticPath(np.logspace(-6, 5, 12)).fit(x, y)
    assert path.unsolved_ == []


def test_a_constant_column_of_huge_values_is_a_constant_column():
    x, y = digits(100)
    wide = np.hstack([x.astype(np.float64), np.full((100, 1), 1e19)])
    np.testing.assert_allclose(
        LogisticPath([1.0]).fit(wide, y).objective_path_,
        LogisticPath([1.0]).fit(x, y).objective_path_,
        rtol=1e-4,
    )


def test_values_too_large_to_compute_with_are_named():
    x, y = digits(100)
    for huge in (1e300, 1e200):
        wide = x.astype(np.float64)
        wide[3, 7] = huge
        with pytest.raises(ValueError, match=r"up to 1e\+[23]00 in column 7, too large to compute with"):
            LogisticPath([1.0]).fit(wide, y)


def test_the_whole_grid_on_real_features():
    x, y = digits()
    path = LogisticPath(DINOV2_GRID).fit(x, y)
    some = slice(0, 45, 4)
    chosen = LogisticPath(DINOV2_GRID[some])
    chosen.coef_path_, chosen.intercept_path_ = path.coef_path_[some], path.intercept_path_[some]
    chosen.objective_path_ = path.objective_path_[some]
    assert excess(chosen, x, y, DINOV2_GRID[some]).max() < 1e-4
    assert (path.gap_path_ <= 5e-5 * path.objective_path_).all()
    probabilities = path.select(20).predict_proba(x)
    theirs = LogisticRegression(C=DINOV2_GRID[20], tol=1e-8, max_iter=5000).fit(standardised(x), y)
    assert np.abs(probabilities - theirs.predict_proba(standardised(x))).max() < 0.01


def test_what_does_not_fit_into_memory_gives_the_same(monkeypatch):
    x, y = digits()
    Cs = np.logspace(-4, 2, 5)
    kept, ridge = LogisticPath(Cs).fit(x, y), RidgePath([1e-3, 0.1]).fit(x, y)
    monkeypatch.setattr(rows, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 4 * 64 * 100)  # 100 rows
    monkeypatch.setattr(softmax, "KEPT_NUMBERS", 0)
    apart = Stacked([x[:250], x[250:]])
    read = LogisticPath(Cs).fit(apart, y)
    np.testing.assert_allclose(read.objective_path_, kept.objective_path_, rtol=1e-4)
    np.testing.assert_allclose(RidgePath([1e-3, 0.1]).fit(apart, y).coef_path_, ridge.coef_path_, atol=1e-5)
    assert (read.predict(apart) == kept.predict(x)).all()


def test_a_good_start_saves_passes():
    x, y = digits()
    first = LogisticPath([0.01, 1.0]).fit(x, y)
    again = LogisticPath([1.0]).fit(x, y, coef_init=(first.coef_, first.intercept_))
    assert again.n_iter_ == 1
    two, of_two = x[y < 2], y[y < 2]
    first = LogisticPath([1.0]).fit(two, of_two)
    assert LogisticPath([1.0]).fit(two, of_two, coef_init=(first.coef_, first.intercept_)).n_iter_ == 1


def test_values_of_c_may_repeat_and_come_in_any_order():
    x, y = digits(200)
    path = LogisticPath([1.0, 0.01, 1.0, 1.0]).fit(x, y)
    assert path.C_path_.tolist() == [0.01, 1.0, 1.0, 1.0]
    assert path.objective_path_[1:] == pytest.approx(path.objective_path_[1], rel=1e-4)


def test_what_is_not_solved_is_told():
    x, y = made_up("heavy-tailed", 150, 20, 12, 0)
    with pytest.warns(ConvergenceWarning, match="not solved to tol 5e-05 within max_iter 3: C = .*gap"):
        path = LogisticPath([1e4], max_iter=3).fit(x, y)
    assert [C for C, _ in path.unsolved_] == [1e4]


def test_features_without_standardising_are_plain_logistic_regression():
    x, y = digits()
    path = LogisticPath([0.1], standardize=False).fit(x / 16, y)
    theirs = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(x.astype(np.float64) / 16, y)
    assert np.abs(path.coef_ - theirs.coef_).max() < 0.01 * np.abs(theirs.coef_).max()


def test_wrong_values_are_refused():
    x, y = digits(50)
    with pytest.raises(ValueError, match="Cs must be numbers above 0"):
        LogisticPath([0.0]).fit(x, y)
    with pytest.raises(ValueError, match="alphas must be numbers above 0"):
        RidgePath([]).fit(x, y)
    with pytest.raises(ValueError, match="50 rows in X and 49 labels"):
        LogisticPath().fit(Stacked([x]), y[:-1])
    spoilt = x.copy()
    spoilt[7, 3] = np.nan
    with pytest.raises(ValueError, match=r"contains nan \(row 7, column 3\)"):
        LogisticPath().fit(Stacked([spoilt]), y)


@parametrize_with_checks([LogisticPath(), RidgePath()])
@pytest.mark.filterwarnings("ignore")
def test_they_are_estimators_of_scikit_learn(estimator, check):
    check(estimator)


# -- rows ---------------------------------------------------------------------------------------------


def test_constant_features_are_told_by_scikit_learns_rule():
    x, _ = made_up("constant", 200, 5, 2, 0)
    found, theirs = Standardiser(stacked(x)), StandardScaler().fit(x.astype(np.float64))
    np.testing.assert_allclose(found.scale, theirs.scale_, rtol=1e-6)
    assert (found.scale[:2] == 1.0).all() and found.scale[2] < 1e-6
    assert found.apply(torch.from_numpy(x))[:, 2].abs().max() > 1.0  # small is not constant


@given(st.lists(st.integers(0, 99), max_size=30))
def test_rows_are_taken_in_the_order_asked_for(wanted):
    x = np.arange(300, dtype=np.float32).reshape(100, 3)
    taken = Stacked([x[:17], x[17:60], x[60:]]).take(np.array(wanted, dtype=np.int64))
    assert np.array_equal(taken, x[np.array(wanted, dtype=np.int64)])


# -- ridge --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "classes"), [(600, 10), (40, 10), (600, 2)])
def test_ridge_is_that_of_scikit_learn(n, classes):
    x, y = digits(1200)
    x, y = x[y < classes][:n], y[y < classes][:n]
    inner, scale = standardised(x), StandardScaler().fit(x.astype(np.float64)).scale_
    alphas = [1e-3, 1e-1, 10.0]
    path = RidgePath(alphas).fit(x, y)
    for place, alpha in enumerate(alphas):
        theirs = Ridge(alpha=alpha * len(x)).fit(inner, np.eye(classes)[y])
        expected = theirs.coef_ if classes > 2 else theirs.coef_[1:] - theirs.coef_[:1]
        difference = np.abs(path.coef_path_[place] * scale - expected).max()
        assert difference < 1e-3 * np.abs(expected).max()  # products are in float32


# -- neighbours ---------------------------------------------------------------------------------------


SIZES = [(1, 1024, 16384), (2, 64, 512), (200, 64, 100), (700, 1000, 50)]


@pytest.mark.parametrize(("depth", "panel", "bank"), SIZES)
def test_neighbours_are_those_of_scikit_learn(monkeypatch, depth, panel, bank):
    monkeypatch.setattr(neighbours, "ON_CPU", neighbours._Sizes(queries=90, panel=panel, bank=bank))
    rng = np.random.default_rng(0)
    x, queries = rng.normal(size=(600, 32)).astype(np.float32), rng.normal(size=(200, 32)).astype(np.float32)
    cosines, found = nearest(Stacked([x[:250], x[250:]]), queries, depth)
    distances, theirs = (
        NearestNeighbors(n_neighbors=min(depth, 600), metric="cosine").fit(x).kneighbors(queries)
    )
    np.testing.assert_allclose(1 - cosines, distances, atol=1e-5)
    assert (found == theirs).mean() > 0.999  # ties may fall otherwise


# -- preconditioners ----------------------------------------------------------------------------------


def heavy_tailed(n=1200, d=12, classes=4, seed=0):
    """Features that few rows use much, as rarely inked pixels, and labels that depend on them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * (rng.random((n, d)) < 0.05) * rng.gamma(0.3, 4.0, (n, 1))
    y = (x @ rng.standard_normal((d, classes)) + 0.3 * rng.standard_normal((n, classes))).argmax(1)
    return x.astype(np.float32), y


def loss_of(x, y):
    rows = stacked(x)
    return SoftmaxLoss(Prepared(rows, Standardiser(rows), "cpu"), y, int(y.max()) + 1, torch.float64)


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_the_curvature_of_all_rows_is_the_hessian(C, monkeypatch):
    monkeypatch.setattr(curvature, "SHRINKAGE", 0.0)
    loss = loss_of(*heavy_tailed())
    unknowns = loss.origin() + 0.3 * torch.randn(loss.size, generator=generator(0), dtype=torch.float64)
    point = loss.evaluate(unknowns, C)
    residual = torch.randn(loss.size, generator=generator(1), dtype=torch.float64)
    residual -= residual.mean(0)
    solution = curvature.SampledCurvature(loss, point)(residual)
    torch.testing.assert_close(loss.curve(point, solution), residual, atol=1e-3, rtol=1e-3)


def test_sampled_curvature_saves_passes_and_changes_no_solution(monkeypatch):
    x, y = heavy_tailed(n=4000, d=40)
    Cs = [1.0, 10.0, 100.0]
    with_it = LogisticPath(Cs, tol=1e-5).fit(x, y)
    monkeypatch.setattr(curvature, "MOST_NUMBERS", 0)  # no block fits
    without = LogisticPath(Cs, tol=1e-5).fit(x, y)
    np.testing.assert_allclose(with_it.objective_path_, without.objective_path_, rtol=2e-5)
    assert with_it.n_iter_ < 0.7 * without.n_iter_


@pytest.mark.parametrize("together", [1, 2, 3])
def test_every_class_is_in_one_block(together):
    p = torch.rand(50, 7, generator=generator(0)).softmax(1)
    groups = curvature._groups(p, together)
    assert sorted(torch.cat(groups).tolist()) == list(range(7))
    assert max(map(len, groups)) == together


# -- heads behind a frozen backbone -------------------------------------------------------------------


def probe_of(network, layers=("own",), batch_norm=True):
    machine = Machine(device="cpu")
    return FrozenProbe(
        TorchReader(network, machine),
        list(layers),
        5,
        batch_norm=batch_norm,
        init_std=0.01,
        seed=0,
        machine=machine,
        size=(64, 64),
    )


def test_lars_takes_the_steps_of_maes(tiny):
    """The update of facebookresearch/mae, util/lars.py, from its description: trust for matrices only."""
    probe = probe_of(tiny())
    optimizer = probe.optimizer("lars", [0.4], 0.9)
    head = probe.heads[0]
    weight, bias = head.weight.detach().clone().double(), head.bias.detach().clone().double()
    momenta = [torch.zeros_like(weight), torch.zeros_like(bias)]
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        gradients = [torch.randn(p.shape, generator=draw) for p in (head.weight, head.bias)]
        head.weight.grad, head.bias.grad = gradients
        optimizer.step()
        trust = 0.001 * weight.norm() / gradients[0].double().norm()
        momenta[0] = 0.9 * momenta[0] + trust * gradients[0].double()
        momenta[1] = 0.9 * momenta[1] + gradients[1].double()
        weight, bias = weight - 0.4 * momenta[0], bias - 0.4 * momenta[1]
        torch.testing.assert_close(head.weight.detach().double(), weight, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(head.bias.detach().double(), bias, rtol=1e-5, atol=1e-7)


def test_the_backbone_of_a_probe_never_learns(tiny):
    network = tiny()
    probe = probe_of(network, layers=("own", "stage2"), batch_norm=True).train()
    assert not network.training and probe.heads.training
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = probe.optimizer("sgd", [0.1, 0.2], 0.9)
    sum(logits.square().mean() for logits in probe(torch.randn(4, 3, 64, 64))).backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1, 0.2, 0.2]


def test_nothing_with_weights_stands_between_pooling_and_head(tiny):
    probe = probe_of(tiny())
    learnt = {name for name, parameter in probe.named_parameters() if parameter.requires_grad}
    assert learnt == {"heads.0.weight", "heads.0.bias"}
    assert not list(probe.norms.parameters())
