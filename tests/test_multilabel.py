"""Tasks with several labels an image: the estimators against scikit-learn's, and a whole run."""

import json

import copies
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler
from timm.data import Mixup

from mixmim_bench.data.layouts.voc import CLASSES
from mixmim_bench.probes.neighbours import nearest, shares
from mixmim_bench.probes.onevsrest import OneVsRestPath
from mixmim_bench.protocols import load_protocols
from mixmim_bench.protocols.multilabel.fewshot import draw_shots
from mixmim_bench.seeding import seed_everything
from mixmim_bench.training.objectives import ClassifyingEach


def some(n=300, d=12, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32)
    labels = (x @ rng.normal(size=(d, classes)) + rng.normal(size=(n, classes)) > 1).astype(np.int64)
    labels[rng.random(labels.shape) < 0.1] = -1
    return x, labels


def test_each_class_is_scikit_learns_regression_on_the_items_that_are_known():
    x, labels = some()
    path = OneVsRestPath([0.01, 1.0]).fit(x, labels)
    for place, scores in enumerate(path.decision_path(x)):
        for k, column in enumerate(labels.T):
            known = column >= 0
            scaler = StandardScaler().fit(x[known])
            expected = LogisticRegression(C=path.C_path_[place], tol=1e-8, max_iter=5000)
            expected.fit(scaler.transform(x[known]), column[known])
            np.testing.assert_allclose(
                scores[:, k], expected.decision_function(scaler.transform(x)), atol=2e-2
            )


def test_the_path_ends_where_enough_is_enough():
    x, labels = some()
    given = []

    def enough(coefs, intercepts):
        assert coefs.shape[1:] == (4, 12) and intercepts.shape[1:] == (4,)
        given.append(len(coefs))
        return sum(given) >= 8

    path = OneVsRestPath(np.logspace(-4, 2, 11)).fit(x, labels, enough)
    assert given == [4, 4] and len(path.C_path_) == len(path.coef_path_) == 8
    whole = OneVsRestPath(np.logspace(-4, 2, 11)).fit(x, labels)
    np.testing.assert_array_equal(whole.coef_path_[:8], path.coef_path_)


def test_a_class_that_says_nothing_has_no_scores():
    x, labels = some()
    labels[:, 1], labels[:, 2] = 0, np.where(labels[:, 2] < 0, -1, 1)
    (scores,) = OneVsRestPath([1.0]).fit(x, labels).decision_path(x)
    assert not scores[:, 1:3].any() and scores[:, 0].any()


def test_wrong_labels_are_refused():
    x, labels = some()
    for wrong in (labels[:, 0], labels[:-1], labels + 5):
        with pytest.raises(ValueError, match="Y must hold 1, 0 and -1"):
            OneVsRestPath().fit(x, wrong)


def test_neighbours_that_are_open_do_not_vote():
    x, labels = some()
    cosines, rows = nearest(x, x[:5], 20)
    scores = shares(cosines, labels[rows], 10, 0.07)
    for i in range(5):
        weight = np.exp((cosines[i, :10] - cosines[i, 0]) / 0.07)
        for k in range(4):
            known = labels[rows[i, :10], k] >= 0
            expected = np.average(labels[rows[i, :10], k][known], weights=weight[known])
            assert scores[i, k] == pytest.approx(expected, rel=1e-5)


def small_voc(folder):
    """Write a task of the VOC images beside it."""
    task = folder / "small_voc.toml"
    task.write_text(
        'schema = 1\nversion = 1\nkind = "multilabel"\ntitle = "VOC"\nnum_classes = 20\n'
        'metrics = ["mean_ap_11", "mean_ap"]\n[data]\nroot = "voc"\nlayouts = ["voc:VOC"]\n'
        "[image]\nsize = 32\n[recipe.linear]\nhigh = -2.0\nsteps = 5\n[split]\n"
        'train = "train"\nval = "val"\ntest = "test"\n'
    )
    return task


def test_fine_tuning_learns_several_labels(run, tmp_path):
    """Classes are sets of digits; what is learnt holds on test, and the record has no note on chance."""

    def labels_of(digits):
        single = digits[:, None] == np.arange(10)
        return np.where(np.concatenate([single, single | np.roll(single, 1, axis=1)], axis=1), 1, -1)

    copies.voc(tmp_path / "voc", CLASSES, (400, 100, 200), labels_of)
    args = ["-m", "test_vit", "--weights", "random", "-t", small_voc(tmp_path), "-p", "finetune"]
    settings = [
        "--set",
        "finetune.epochs=12",
        "--set",
        "finetune.batch_size=16",
        "--set",
        "finetune.base_lr=1e-2",
    ]
    said = run("run", *args, *settings, "--results", tmp_path / "results").output
    (file,) = (tmp_path / "results" / "runs").glob("*.json")
    record = json.loads(file.read_text())
    assert record["scores"]["mean_ap"]["low"] > 0.4 > 2 * record["scores"]["mean_ap"]["guess"], said
    assert record["notes"] == []


def test_small_sets_start_from_the_linear_probe(run, tmp_path):
    """With weights and few steps, auto takes `small`; a task's own epochs and rates replace its grid."""

    def labels_of(digits):
        return np.where((digits[:, None] + np.arange(20)) % 5 == 0, 1, -1)

    copies.voc(tmp_path / "voc", CLASSES, (120, 60, 80), labels_of)
    weights = tmp_path / "weights.safetensors"
    export = ["-m", "test_vit", "--weights", "random", "--format", "safetensors", "--features"]
    run("export", *export, "--out", weights)
    args = [
        "-m",
        "test_vit",
        "--weights",
        weights,
        "-t",
        small_voc(tmp_path),
        "--results",
        tmp_path / "results",
    ]
    settings = [
        f"--set=finetune.{text}" for text in ("epochs=1", "warmup_epochs=0.5", "base_lr_grid=[1e-9, 1e-3]")
    ]
    run("run", *args, "-p", "linear", "-p", "finetune", *settings)
    records = [json.loads(file.read_text()) for file in (tmp_path / "results" / "runs").glob("*.json")]
    found = {record["identity"]["protocol"]["name"]: record for record in records}
    recipe = found["finetune"]["identity"]["protocol"]
    assert recipe["head_init"] == "linear" and recipe["batch_size"] == 64 and "epochs_grid" not in recipe
    assert found["finetune"]["chosen"]["epochs"] == 1
    values = [found[name]["scores"]["mean_ap"]["value"] for name in ("finetune", "linear")]
    assert values[0] > values[1] - 0.05 > 0.3


def test_voc_is_judged_by_every_protocol(run, tmp_path):
    copies.voc(tmp_path / "voc", CLASSES)
    task = small_voc(tmp_path)
    settings = {"finetune.epochs": 3, "finetune.mixup": 0.8, "finetune.batch_size": 16}
    settings |= {"linear-sgd.epochs": 2, "linear-sgd.warmup_epochs": 1, "fewshot.shots": [1, 3]}
    args = ["-m", "test_vit", "--weights", "random", "-t", task, "--results", tmp_path / "results"]
    every = [name for name, kind in load_protocols() if kind == "multilabel"]
    protocols = [name for name in every if name != "own-head"]  # which needs weights with a classifier
    assert set(protocols) == {"linear", "knn", "finetune", "linear-sgd", "fewshot"}
    run(
        "run", *args, *(text for name in protocols for text in ("-p", name)),
        *(text for key, value in settings.items() for text in ("--set", f"{key}={value}")),
    )  # fmt: skip
    for file in (tmp_path / "results" / "runs").glob("*.json"):
        record = json.loads(file.read_text())
        assert record["error"] == "" and record["counts"]["n_test"] == 60
        with np.load(file.with_suffix(".npz"), allow_pickle=False) as kept:
            y, scores = kept["y"], kept["scores"]
        if record["identity"]["protocol"]["name"] == "fewshot":
            continue  # several draws
        known = [average_precision_score(y[y[:, k] >= 0, k], scores[y[:, k] >= 0, k]) for k in range(20)]
        assert record["scores"]["mean_ap"]["value"] == pytest.approx(np.mean(known), abs=1e-6)
    assert len(list((tmp_path / "results" / "runs").glob("*.json"))) == 5
    assert "small_voc" in run("compare", "test_vit", "test_vit", "--results", tmp_path / "results").output


def test_targets_are_mixed_as_the_images_are():
    """A mixture of two images has each one's labels by its share; what is unknown in one has no loss."""
    labels = torch.tensor([[1, 0, 1], [0, 0, 1], [1, -1, 0], [0, 1, 0]])
    images = torch.eye(4).view(4, 1, 2, 2).expand(4, 3, 2, 2)
    seed_everything(3)
    objective = ClassifyingEach(Mixup(0.8, 0.0, num_classes=1, label_smoothing=0.0), smoothing=0.0)
    mixed, targets = objective.prepare(images, labels)
    share = mixed[0, 0].flatten()[0]
    assert 0.0 < share < 1.0
    for place, partner in enumerate((3, 2, 1, 0)):
        for label in range(3):
            both = labels[[place, partner], label]
            known = bool((both >= 0).all())
            assert targets[place, 1, label] == known
            if known:
                expected = share * both[0] + (1 - share) * both[1]
                assert targets[place, 0, label] == pytest.approx(float(expected), abs=1e-6)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    known = targets[:, 1] == 1
    expected = F.binary_cross_entropy_with_logits(network(mixed)[known], targets[:, 0][known])
    assert objective.loss(network, mixed, targets).item() == pytest.approx(expected.item(), rel=1e-6)
    assert objective.weight(targets) == known.sum()


def test_images_without_a_known_label_have_no_gradient():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    objective = ClassifyingEach()
    images, targets = objective.prepare(torch.randn(2, 3, 2, 2), torch.full((2, 3), -1))
    loss = objective.loss(network, images, targets)
    loss.backward()
    assert objective.weight(targets) == 0 and loss.item() == 0.0
    assert all(parameter.grad.abs().max() == 0 for parameter in network.parameters())


@given(st.integers(0, 2**31), st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True))
def test_shots_show_each_class_often_enough(seed, shots):
    rng = np.random.default_rng(seed)
    labels = (rng.random((40, 5)) < rng.random(5)).astype(np.int64)
    labels[rng.random((40, 5)) < 0.05] = -1
    drawn = draw_shots(labels, sorted(shots), seed, 0)
    before: list = []
    for count in sorted(shots):
        rows = drawn[count].tolist()
        assert rows[: len(before)] == before and len(set(rows)) == len(rows) <= 5 * count
        assert ((labels[rows] == 1).sum(0) >= np.minimum(count, (labels == 1).sum(0))).all()
        before = rows


def test_a_metric_of_one_label_is_refused(run, tmp_path):
    task = tmp_path / "wrong.toml"
    task.write_text(
        'schema = 1\nversion = 1\nkind = "multilabel"\ntitle = "VOC"\nnum_classes = 20\n'
        'metrics = ["mean_per_class"]\n[data]\nlayouts = ["voc:VOC"]\n'
        '[split]\ntrain = "train"\nval = "val"\ntest = "test"\n'
    )
    said = run("run", "-t", task, code=2).output
    assert (
        "metrics: 'mean_per_class' is not a metric of multilabel tasks; use one of top1, top5, roc_auc"
        in said
    )
