"""Paired comparison: the statistics against SciPy, the literature and simulation; the command."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, false_discovery_control, norm
from test_report import made

from mixmim_bench.errors import BenchError
from mixmim_bench.report.compare import compare
from mixmim_bench.report.write import write_report
from mixmim_bench.scoring import metrics
from mixmim_bench.scoring.intervals import resample
from mixmim_bench.scoring.predictions import ClassScores, DrawScores
from mixmim_bench.scoring.statistics import (
    detectable_difference,
    holm,
    mcnemar_mid_p,
    paired_bootstrap,
    paired_z_p,
    seeds_t,
    z_p,
)
from mixmim_bench.suite.records import RunStore


def test_mcnemar_is_that_of_the_literature():
    """Table 1 of Fagerland, Lydersen and Laake (2013): 1 against 7 gives mid-p 0.039."""
    assert mcnemar_mid_p(1, 7) == pytest.approx(0.0391, abs=1e-4)
    assert mcnemar_mid_p(7, 1) == mcnemar_mid_p(1, 7)
    assert mcnemar_mid_p(0, 0) == 1.0 and mcnemar_mid_p(5, 5) == pytest.approx(1.0)


def simulated(rng, n, p_first, p_second, share):
    """Draw two vectors of hits that agree by chance `share` of the time."""
    same = rng.random(n) < share
    common = rng.random(n) < p_first
    first = np.where(same, common, rng.random(n) < p_first)
    second = np.where(same, common, rng.random(n) < p_second)
    return first.astype(float), second.astype(float)


def test_under_no_difference_five_percent_are_rejected_and_intervals_cover():
    rng = np.random.default_rng(0)
    rejected, covered = [], []
    for _ in range(600):
        x, y = simulated(rng, 400, 0.8, 0.8, 0.5)
        rejected.append(mcnemar_mid_p(int((x > y).sum()), int((y > x).sum())) < 0.05)
        low, high = paired_bootstrap(x - y)
        covered.append(low <= 0.0 <= high)
    assert 0.025 <= np.mean(rejected) <= 0.075
    assert 0.93 <= np.mean(covered) <= 0.975


def test_the_difference_called_detectable_is_detected_in_four_of_five_cases():
    rng = np.random.default_rng(1)
    found, n = [], 1000
    for _ in range(300):
        x, y = simulated(rng, n, 0.80, 0.75, 0.0)
        wanted = detectable_difference(x - y)
        found.append((wanted, mcnemar_mid_p(int((x > y).sum()), int((y > x).sum())) < 0.05))
    power = np.mean([hit for _, hit in found])
    z = 0.05 / np.mean([wanted for wanted, _ in found]) * (1.96 + 0.8416) - 1.96
    assert power == pytest.approx(norm.cdf(z), abs=0.08)


def test_the_paired_bootstrap_is_that_of_scipy():
    rng = np.random.default_rng(2)
    x, y = simulated(rng, 300, 0.7, 0.6, 0.3)
    theirs = bootstrap((x - y,), np.mean, method="percentile", n_resamples=9999, rng=rng).confidence_interval
    assert paired_bootstrap(x - y) == pytest.approx((theirs.low, theirs.high), abs=0.006)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_false_discovery_rate_and_bonferroni(p_values):
    adjusted = np.array(holm(p_values))
    assert (adjusted <= np.minimum(1, len(p_values) * np.array(p_values)) + 1e-12).all()
    assert (adjusted >= false_discovery_control(p_values) - 1e-12).all()
    assert (adjusted >= np.array(p_values) - 1e-15).all()


def test_the_z_test_finds_what_is_there():
    rng = np.random.default_rng(3)
    assert paired_z_p(rng.normal(0.5, 1, 200)) < 1e-6
    assert paired_z_p(np.zeros(10)) == 1.0


# -- results that are kept ---------------------------------------------------------------------------


def kept(store, hits, seed=None, **record):
    """Keep a result in which the images of `hits` (n,) were right."""
    n = len(hits)
    y = np.arange(n) % 10
    best = np.where(np.asarray(hits, dtype=bool), y, (y + 1) % 10)
    scores = np.eye(10)[best]
    predicted = ClassScores(np.array([f"image {i}" for i in range(n)]), y, scores)
    store.save(made(value=float(np.mean(hits)), seed=seed, **record), predicted.kept(["top1"]))


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path)
    store.prepare()
    return store


def test_a_better_model_is_found_and_equal_ones_are_not_told_apart(store, run):
    rng = np.random.default_rng(0)
    kept(store, rng.random(500) < 0.9, model="good")
    kept(store, rng.random(500) < 0.6, model="bad")
    kept(store, rng.random(500) < 0.9, model="good", task="other")
    kept(store, rng.random(500) < 0.9, model="bad", task="other")
    better, equal = compare(store, "good", "bad")
    assert better.verdict == "good is better" and better.low > 0.2 and better.p_holm < 1e-6
    assert better.difference == pytest.approx(better.first - better.second)
    assert (
        equal.verdict.startswith("no difference shown; 500 images can detect") and equal.low < 0 < equal.high
    )
    assert equal.p_holm >= equal.p
    assert compare(store, "bad", "good")[0].difference == -better.difference

    said = run("compare", "good", "bad", "--results", store.folder).output
    assert "good is better" in said and "p (Holm)" in said
    rows = json.loads(run("compare", "good", "bad", "--json", "--results", store.folder).output)
    assert [row["task"] for row in rows] == ["digits", "other"]
    assert (
        run("compare", "good", "good", "--results", store.folder).output.count("too few predictions differ")
        == 2
    )


def test_a_pair_is_made_of_the_images_that_both_have(store):
    kept(store, np.ones(300), model="a")
    kept(store, np.zeros(200), model="b")
    (found,) = compare(store, "a", "b")
    assert found.n == 200 and found.difference == 1.0


def test_seeds_are_averaged_image_by_image(store):
    rng = np.random.default_rng(0)
    for seed in (0, 1, 2):
        kept(store, rng.random(400) < 0.9, model="a", seed=seed)
        kept(store, rng.random(400) < 0.7, model="b", seed=seed)
    (found,) = compare(store, "a", "b")
    assert found.test == "paired t over seeds and images" and found.verdict == "a is better"
    assert found.n == 400 and found.seeds == 3


def test_names_that_do_not_do_are_told(store):
    kept(store, np.ones(10), model="mixmim-b")
    kept(store, np.ones(10), model="mixmim-l", task="other")
    with pytest.raises(BenchError, match="no results of 'mixmim-c'; did you mean mixmim-"):
        compare(store, "mixmim-b", "mixmim-c")
    with pytest.raises(BenchError, match="share no task and protocol"):
        compare(store, "mixmim-b", "mixmim-l")
    kept(store, np.zeros(10), model="mixmim-b", sha256="1", weights="other")
    with pytest.raises(BenchError, match="several weights; name one of mixmim-b/other, mixmim-b/w"):
        compare(store, "mixmim-b", "mixmim-l")
    (found,) = compare(store, "mixmim-b/w", "mixmim-b/other")
    assert found.difference == 1.0


def test_runs_with_other_settings_are_not_compared(store):
    for model, changes in (
        ("a", {}),
        ("b", {"provenance": {"started": "2027-01-01T00:00:00"}, "values": {"steps": 9}}),
    ):
        kept(store, np.ones(10), model=model, **changes)
    with pytest.raises(BenchError, match=r"^a has results with other settings than usual only \(.*steps"):
        compare(store, "a", "b")


def test_smoke_runs_are_not_compared(store, run):
    rng = np.random.default_rng(0)
    for model, share in (("a", 0.9), ("b", 0.8)):
        kept(store, rng.random(300) < share, model=model)
    alone = compare(store, "a", "b")
    for model, share in (("a", 0.9), ("b", 0.5), ("c", 0.5)):
        kept(store, rng.random(100) < share, model=model, task="digits@limit100")
    assert compare(store, "a", "b") == alone  # neither a row nor a test to correct for
    for name in ("c", "c/w"):
        with pytest.raises(BenchError, match=f"^{name} has results of smoke runs .* without --limit$"):
            compare(store, "a", name)
    said = run("compare", "c", "a", "--results", store.folder, code=2).output
    assert "c has results of smoke runs (--limit) only" in said
    with pytest.raises(BenchError, match="no results of 'd'"):
        compare(store, "a", "d")


def test_predictions_that_are_gone_are_told(store):
    kept(store, np.ones(10), model="a")
    kept(store, np.ones(10), model="b")
    next(store.runs.glob("*.npz")).unlink()
    with pytest.raises(BenchError, match=r"the predictions .* cannot be read"):
        compare(store, "a", "b")


def ranked(rng, n, strength):
    """Scores of two classes that tell the label the better the stronger."""
    y = rng.integers(0, 2, n)
    return y, np.stack([np.zeros(n), strength * y + rng.normal(size=n)], 1)


@pytest.mark.parametrize("metric", ["roc_auc", "mean_per_class"])
def test_metrics_that_are_no_means_are_compared_by_resampling_both(store, metric):
    for model, strength in (("good", 2.5), ("bad", 0.8), ("too", 2.5)):
        rng = np.random.default_rng(0)
        y, _ = ranked(rng, 300, 0)
        scores = np.stack(
            [np.zeros(300), strength * (y - 0.5) + np.random.default_rng(1).normal(size=300)], 1
        )
        predicted = ClassScores(np.arange(300).astype(str), y, scores)
        record = made(value=predicted.scores_by([metric])[metric]["value"], model=model, metric=metric)
        store.save(record, predicted.kept([metric]))
    (found,) = compare(store, "good", "bad")
    assert found.test == "paired bootstrap z" and found.metric == metric
    assert found.verdict == "good is better" and 0 < found.low < found.difference < found.high
    (same,) = compare(store, "good", "too")
    assert same.difference == 0.0 and same.p == 1.0


def test_the_paired_bootstrap_of_a_ranking_keeps_its_level():
    """Two equally good rankings of the same items: about 5 % of differences are called real."""
    rejected = []
    reduce = metrics.METRICS["roc_auc"].reduce
    rng = np.random.default_rng(0)
    for trial in range(250):
        y = rng.integers(0, 2, 150)
        common = y + rng.normal(size=150)
        sides = [np.stack([np.zeros(150), common + rng.normal(size=150)], 1) for _ in range(2)]
        x, z = (metrics.METRICS["roc_auc"].items(y, scores) for scores in sides)
        drawn = np.concatenate([reduce(x, w) - reduce(z, w) for w in resample(150, 300, seed=trial)])
        whole = np.ones((1, 150))
        difference = float((reduce(x, whole) - reduce(z, whole))[0])
        rejected.append(z_p(difference, float(drawn.std(ddof=1))) < 0.05)
    assert 0.02 <= np.mean(rejected) <= 0.09


def test_draws_count_as_seeds_do(store):
    """Few-shot results keep the predictions of each draw."""
    rng = np.random.default_rng(0)
    y = np.arange(200) % 10
    for model, share in (("a", 0.9), ("b", 0.5)):
        right = [np.where(rng.random(200) < share, y, (y + 1) % 10) for _ in range(3)]
        predicted = DrawScores(np.arange(200).astype(str), y, [np.eye(10)[best] for best in right])
        value = predicted.scores_by(["top1"])["top1"]["value"]
        store.save(made(value=value, model=model, seed=0), predicted.kept(["top1"]))
    (found,) = compare(store, "a", "b")
    assert found.test == "paired t over seeds and images" and found.seeds == 3
    assert found.verdict == "a is better"
    assert found.first == pytest.approx(0.9, abs=0.05)


# -- seeds and draws ---------------------------------------------------------------------------------


def hits_over_seeds(rng, n, seeds, spread, gain=0.0):
    """Hits (S, n) of two models on the same images, whose skill differs from seed to seed."""
    hardness = rng.normal(size=n)

    def side(skill):
        skills = skill + spread * rng.normal(size=(seeds, 1))
        return (skills + 0.3 * rng.normal(size=(seeds, n)) > hardness).astype(float)

    return side(1.0 + gain), side(1.0)


def p_over_seeds(x, y):
    differences, n = x - y, x.shape[1]
    of_mean, of_each = differences.mean(0).var(ddof=1) / n, differences.var(axis=1, ddof=1).mean() / n
    return seeds_t(differences.mean(1), of_mean, of_each, n)


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.1])
@pytest.mark.parametrize(("n", "seeds"), [(1000, 2), (1000, 5), (5000, 3)])
def test_equal_models_with_seeds_of_their_own_are_told_apart_in_five_percent(n, seeds, spread):
    """As if seeds were fixed, 46 % of such pairs were told apart with 5 draws (72 % at n = 5,000)."""
    rng = np.random.default_rng(0)
    rejected, covered = [], []
    for _ in range(400):
        p, half = p_over_seeds(*(pair := hits_over_seeds(rng, n, seeds, spread)))
        rejected.append(p < 0.05)
        covered.append(abs((pair[0] - pair[1]).mean()) <= half)
    assert np.mean(rejected) <= 0.08
    assert np.array_equal(covered, ~np.array(rejected))  # interval and test say the same


def test_a_difference_beyond_the_spread_of_the_seeds_is_found():
    rng = np.random.default_rng(0)
    assert (
        np.mean([p_over_seeds(*hits_over_seeds(rng, 1000, 5, 0.02, 0.15))[0] < 0.05 for _ in range(50)]) > 0.9
    )
    assert seeds_t(np.zeros(3), 0.0, 0.0, 100) == (1.0, 0.0)


@pytest.mark.parametrize("metric", ["top1", "mean_per_class"])
def test_the_spread_of_seeds_reaches_the_verdict(store, metric):
    """Three seeds of each model, far apart: no seed alone would say that they are equal."""
    n, y = 600, np.arange(600) % 10
    rng = np.random.default_rng(0)
    for model, rates in (("a", (0.95, 0.75, 0.85)), ("b", (0.78, 0.9, 0.72))):
        for seed, rate in enumerate(rates):
            scores = np.eye(10)[np.where(rng.random(n) < rate, y, (y + 1) % 10)]
            predicted = ClassScores(np.arange(n).astype(str), y, scores)
            value = predicted.scores_by([metric])[metric]["value"]
            store.save(made(value=value, seed=seed, model=model, metric=metric), predicted.kept([metric]))
    (found,) = compare(store, "a", "b")
    assert found.seeds == 3 and found.low < 0 < found.high and found.p > 0.05
    assert found.verdict.startswith("no difference shown")


def test_one_seed_says_that_other_seeds_are_not_covered(store):
    rng = np.random.default_rng(0)
    for model, rate in (("a", 0.9), ("b", 0.6)):
        kept(store, rng.random(300) < rate, model=model, seed=0)
        kept(store, rng.random(300) < rate, model=model, task="fixed")
    drawn, fixed = compare(store, "a", "b")
    assert drawn.verdict == "a is better (one seed: the spread of other seeds is not covered)"
    assert fixed.verdict == "a is better"


def test_only_seeds_that_both_have_are_paired(store):
    rng = np.random.default_rng(0)
    for model, seeds in (("a", (0, 1, 2)), ("b", (1, 2, 3))):
        for seed in seeds:
            kept(store, rng.random(200) < 0.8, model=model, seed=seed)
    assert compare(store, "a", "b")[0].seeds == 2


def test_the_draws_of_one_random_network_are_one_unit(store):
    rng = np.random.default_rng(0)
    y = np.arange(200) % 10
    for model in ("a", "b"):
        for seed in (0, 1):
            right = [np.where(rng.random(200) < 0.8, y, (y + 1) % 10) for _ in range(3)]
            predicted = DrawScores(np.arange(200).astype(str), y, [np.eye(10)[best] for best in right])
            value = predicted.scores_by(["top1"])["top1"]["value"]
            record = made(value=value, model=model, seed=seed, weights="random init", random_init=True)
            store.save(record, predicted.kept(["top1"]))
    assert compare(store, "a", "b")[0].seeds == 2


def test_all_draws_count_beside_a_random_network_whose_draws_are_one_unit(store):
    """The scores compared are the means over seeds and draws that the leaderboard shows."""
    rng = np.random.default_rng(0)
    y = np.arange(200) % 10
    mean = {}
    for model, share, random in (("a", 0.9, {}), ("b", 0.5, {"weights": "random init", "random_init": True})):
        values = []
        for seed in (0, 1):
            right = [np.where(rng.random(200) < share, y, (y + 1) % 10) for _ in range(3)]
            predicted = DrawScores(np.arange(200).astype(str), y, [np.eye(10)[best] for best in right])
            values.append(predicted.scores_by(["top1"])["top1"]["value"])
            record = made(value=values[-1], model=model, seed=seed, **random)
            store.save(record, predicted.kept(["top1"]))
        mean[model] = np.mean(values)
    (found,) = compare(store, "a", "b")
    assert (found.first, found.second) == pytest.approx((mean["a"], mean["b"]))
    assert found.seeds == 2


# -- tasks with several metrics ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [["mean_per_class", "top1", "roc_auc"], ["top1", "mean_ap"], ["roc_auc", "top5"]], ids="+".join
)
def test_metrics_of_different_kinds_in_one_task(store, names):
    """All scores are kept where any of the metrics ranks, and the first is compared from them."""
    for model, strength in (("a", 3.0), ("b", 1.0)):
        y = np.random.default_rng(0).integers(0, 6, 300)
        scores = strength * np.eye(6)[y] + np.random.default_rng(1).normal(size=(300, 6))
        predicted = ClassScores(np.arange(300).astype(str), y, scores)
        record = made(value=predicted.scores_by(names)[names[0]]["value"], model=model, metric=names[0])
        store.save(record, predicted.kept(names))
    (found,) = compare(store, "a", "b")
    assert found.metric == names[0] and found.verdict == "a is better"
    values = {record.model: record.scores[names[0]]["value"] for record in store.records()}
    assert [found.first, found.second] == pytest.approx([values["a"], values["b"]], abs=1e-6)


def test_a_task_that_cannot_be_compared_does_not_stop_the_others(store, run):
    for task in ("digits", "other"):
        kept(store, np.ones(50), model="a", task=task)
        kept(store, np.zeros(50), model="b", task=task)
    broken = next(r for r in store.records() if r.task == "digits" and r.model == "a")
    (store.runs / f"{broken.run_id}.npz").write_bytes(b"PK not whole")
    said = []
    (found,) = compare(store, "a", "b", said.append)
    assert found.task == "other" and len(said) == 1 and "digits linear is skipped" in said[0]
    shown = run("compare", "a", "b", "--results", store.folder)
    assert "other" in shown.stdout and "digits linear is skipped" in shown.stderr


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "no archive": lambda path: path.write_bytes(b"PK not whole"),
    "flipped": lambda path: path.write_bytes(bytes(b ^ 0x55 for b in path.read_bytes())),
    "flipped inside": lambda path: path.write_bytes(
        path.read_bytes()[:200] + b"\x00" * 50 + path.read_bytes()[250:]
    ),
    "another array": lambda path: path.write_bytes(np.lib.format.magic(1, 0) + b"\x00" * 100),
    "other names": lambda path: np.savez(path, ids=np.zeros(3)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_predictions_end_neither_comparison_nor_report(store, damage):
    for task in ("digits", "other"):
        kept(store, np.ones(50), model="a", task=task)
        kept(store, np.zeros(50), model="b", task=task)
    broken = next(r for r in store.records() if r.task == "digits" and r.model == "a")
    DAMAGE[damage](store.runs / f"{broken.run_id}.npz")
    said = []
    assert [found.task for found in compare(store, "a", "b", said.append)] == ["other"]
    assert "digits linear is skipped" in said[0]
    record = dataclasses.replace(broken, scores={"top1": {**broken.scores["top1"], "interval": "older"}})
    store.rewrite(record)
    assert "digits linear" in write_report(store).markdown


def test_a_ranking_of_common_images_of_one_class_is_left_out(store):
    for model, rows in (("a", slice(0, 60)), ("b", slice(50, 150))):
        y = np.repeat([0, 1], [100, 50])[rows]
        scores = np.stack([np.zeros(len(y)), y + np.random.default_rng(0).normal(size=len(y))], 1)
        ids = np.arange(150).astype(str)[rows]
        for task in ("one", "two"):
            shown = ids if task == "one" else np.arange(len(y)).astype(str)
            predicted = ClassScores(shown, y if task == "one" else np.arange(len(y)) % 2, scores)
            record = made(value=0.5, model=model, metric="roc_auc", task=task)
            store.save(record, predicted.kept(["roc_auc"]))
    said = []
    assert [found.task for found in compare(store, "a", "b", said.append)] == ["two"]
    assert "one linear is skipped" in said[0] and "no class has both" in said[0]


def test_what_is_not_drawn_is_compared_with_every_seed(store):
    rng = np.random.default_rng(0)
    kept(store, rng.random(300) < 0.9, model="a")
    for seed, rate in enumerate((0.5, 0.6, 0.7)):
        kept(store, rng.random(300) < rate, model="b", seed=seed)
    (found,) = compare(store, "a", "b")
    assert found.seeds == 3 and found.second == pytest.approx(0.6, abs=0.05)
    (turned,) = compare(store, "b", "a")
    assert turned.difference == pytest.approx(-found.difference) and turned.seeds == 3


def test_what_seeds_can_tell_is_no_less_than_their_interval(store):
    rng = np.random.default_rng(0)
    for seed, (a, b) in enumerate(((0.9, 0.5), (0.5, 0.8))):
        kept(store, rng.random(500) < a, model="a", seed=seed)
        kept(store, rng.random(500) < b, model="b", seed=seed)
    (found,) = compare(store, "a", "b")
    assert found.detectable > (found.high - found.low) / 2
    assert (
        "500 images and 2 seeds are too few to detect any" in found.verdict
    )  # it would take over 100 points


def test_draws_of_one_random_network_are_one_seed(store):
    rng = np.random.default_rng(0)
    y = np.arange(200) % 10
    for model, rate in (("a", 0.9), ("b", 0.5)):
        right = [np.where(rng.random(200) < rate, y, (y + 1) % 10) for _ in range(3)]
        predicted = DrawScores(np.arange(200).astype(str), y, [np.eye(10)[best] for best in right])
        record = made(value=rate, model=model, seed=0, weights="random init", random_init=True)
        store.save(record, predicted.kept(["top1"]))
    assert compare(store, "a", "b")[0].verdict.endswith(
        "(one seed: the spread of other seeds is not covered)"
    )
