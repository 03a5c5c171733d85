"""Tasks with several labels an image: the estimators against scikit-learn's, and a whole run."""

import json

import copies
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from mixmim_bench.data.layouts.voc import CLASSES
from mixmim_bench.probes.neighbours import nearest, shares
from mixmim_bench.probes.onevsrest import OneVsRestPath


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


def test_voc_is_judged_by_linear_and_knn_and_finetune_is_left_out(run, tmp_path):
    copies.voc(tmp_path / "voc", CLASSES)
    task = tmp_path / "small_voc.toml"
    task.write_text(
        'schema = 1\nversion = 1\nkind = "multilabel"\ntitle = "VOC"\nnum_classes = 20\n'
        'metrics = ["mean_ap_11", "mean_ap"]\n[data]\nroot = "voc"\nlayouts = ["voc:VOC"]\n'
        "[image]\nsize = 32\n[recipe.linear]\nhigh = -2.0\nsteps = 5\n[split]\n"
        'train = "train"\nval = "val"\ntest = "test"\n'
    )
    protocols = ["-p", "linear", "-p", "knn", "-p", "finetune"]
    args = ["-m", "test_vit", "--weights", "random", "-t", task, "--results", tmp_path / "results"]
    said = run("run", *args, *protocols).output
    assert "small_voc: no finetune for multilabel tasks; skipped" in said
    run("run", *args, "-p", "finetune", code=2)
    for file in (tmp_path / "results" / "runs").glob("*.json"):
        record = json.loads(file.read_text())
        assert record["error"] == "" and record["counts"]["n_test"] == 60
        with np.load(file.with_suffix(".npz"), allow_pickle=False) as kept:
            y, scores = kept["y"], kept["scores"]
        known = [average_precision_score(y[y[:, k] >= 0, k], scores[y[:, k] >= 0, k]) for k in range(20)]
        assert record["scores"]["mean_ap"]["value"] == pytest.approx(np.mean(known), abs=1e-6)
    assert len(list((tmp_path / "results" / "runs").glob("*.json"))) == 2
    assert "small_voc" in run("compare", "test_vit", "test_vit", "--results", tmp_path / "results").output


def test_a_metric_of_one_label_is_refused(run, tmp_path):
    task = tmp_path / "wrong.toml"
    task.write_text(
        'schema = 1\nversion = 1\nkind = "multilabel"\ntitle = "VOC"\nnum_classes = 20\nmetrics = ["top1"]\n'
        '[data]\nlayouts = ["voc:VOC"]\n[split]\ntrain = "train"\nval = "val"\ntest = "test"\n'
    )
    said = run("run", "-t", task, code=2).output
    assert "metrics: 'top1' is not a metric of multilabel tasks; use one of roc_auc, mean_ap" in said
