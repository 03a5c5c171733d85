"""Scores of the images that a model was fitted to, against scikit-learn, and where they are shown."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from dense import small_scenes
from records import made
from sklearn.datasets import make_multilabel_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    log_loss,
    roc_auc_score,
)
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from test_dense import run_of
from test_page import CHROMIUM, in_browser
from test_protocols import PixelBench, fitted, labels, weigh
from test_store import bench_of
from test_tables import right, saved
from test_training import bench_for, digits, splits_of

from mixmim_bench.data.dataset import Split
from mixmim_bench.data.images import Arrays, Part, join
from mixmim_bench.data.slices import stratified_order
from mixmim_bench.probes.neighbours import nearest_others
from mixmim_bench.protocols import build_protocol, on_train
from mixmim_bench.protocols.classification import knn
from mixmim_bench.protocols.classification.fewshot import FewShot
from mixmim_bench.protocols.classification.fewshot import _order as draw_order
from mixmim_bench.protocols.classification.finetune import Finetune
from mixmim_bench.protocols.classification.knn import KNN
from mixmim_bench.protocols.classification.linear import Linear
from mixmim_bench.protocols.classification.linear_sgd import LinearSGD
from mixmim_bench.protocols.contract import scored_again
from mixmim_bench.protocols.multilabel.fewshot import FewShotMultilabel, draw_shots
from mixmim_bench.protocols.multilabel.knn import KNNMultilabel
from mixmim_bench.protocols.multilabel.linear import LinearMultilabel
from mixmim_bench.protocols.segmentation.finetune import FinetuneSegmentation
from mixmim_bench.report.frame import to_long
from mixmim_bench.report.runs import describe
from mixmim_bench.report.write import write_report
from mixmim_bench.scoring import metrics
from mixmim_bench.suite.bundles import merge, write_bundle
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.schema import NotARecord, record_of
from mixmim_bench.suite.taskfile import read_task


def joined(bench):
    return np.concatenate([bench.x["train"], bench.x["val"]]), labels(bench, "train", "val")


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


class LabelBench(PixelBench):
    """Features with several labels each, some unknown."""

    def __init__(self, classes=4):
        super().__init__()
        x, y = make_multilabel_classification(500, 12, n_classes=classes, random_state=0)
        y = np.where(np.random.default_rng(0).random(y.shape) < 0.1, -1, y)
        self.metric, self.metrics, self.num_classes = "mean_ap", ("mean_ap", "roc_auc"), classes
        self.x, self.splits = {}, {}
        for role, rows in (("train", slice(0, 250)), ("val", slice(250, 350)), ("test", slice(350, 500))):
            own = y[rows]
            pixels = np.zeros((len(own), 2, 2), np.uint8)
            ids = np.arange(500)[rows].astype(str)
            self.splits[role] = Split(role, Part(ids, own, Arrays(pixels, role)))
            self.x[role] = x[rows].astype(np.float32)


def mean_of_known(score, y, scores):
    return np.mean([score(y[y[:, k] >= 0, k], scores[y[:, k] >= 0, k]) for k in range(y.shape[1])])


# -- probes -------------------------------------------------------------------------------------------


def test_linear_scores_what_its_head_gives_for_train_and_val():
    bench = PixelBench()
    bench.metrics = ("top1", "mean_per_class", "roc_auc")
    done = fitted(Linear(low=-4.0, high=-2.0, steps=2), bench)
    x, y = joined(bench)
    weight, bias = done.heads["both"]
    probabilities = softmax(x @ weight.T + bias)
    assert done.train["n"] == 1100
    assert done.train["top1"] == accuracy_score(y, probabilities.argmax(1)) < 1.0
    assert done.train["mean_per_class"] == pytest.approx(
        balanced_accuracy_score(y, probabilities.argmax(1)), abs=1e-12
    )
    auc = roc_auc_score(y, probabilities, multi_class="ovr")
    # ranked by log-probabilities, which order images as probabilities do up to rounding
    assert done.train["roc_auc"] == pytest.approx(auc, abs=1e-6)
    assert done.train["loss"] == pytest.approx(log_loss(y, probabilities), rel=1e-6)


def test_blocks_change_nothing_but_the_order_of_a_sum(monkeypatch):
    bench = PixelBench()
    bench.metrics = ("top1", "mean_per_class", "roc_auc")
    whole = fitted(Linear(low=-4.0, high=-2.0, steps=2), bench).train
    monkeypatch.setattr(on_train, "BLOCK_BYTES", 8 * 64 * 7)  # seven rows
    assert fitted(Linear(low=-4.0, high=-2.0, steps=2), bench).train == pytest.approx(whole, rel=1e-12)


def test_metrics_that_keep_all_scores_are_of_a_sample_where_there_are_too_many(monkeypatch):
    monkeypatch.setattr(on_train, "KEPT_SCORES", 10 * 300)
    bench = PixelBench()
    assert fitted(Linear(low=-4.0, high=-2.0, steps=2), bench).train["n"] == 1100
    bench.metrics = ("top1", "roc_auc")
    done = fitted(Linear(low=-4.0, high=-2.0, steps=2), bench)
    x, y = joined(bench)
    rows = stratified_order(np.arange(1100).astype(str), y)[:300]
    weight, bias = done.heads["both"]
    assert done.train["n"] == 300
    assert done.train["top1"] == accuracy_score(y[rows], (x[rows] @ weight.T + bias).argmax(1))
    assert np.abs(np.bincount(y[rows]) - 300 * np.bincount(y) / 1100).max() < 1.0


def test_linear_of_several_labels_scores_the_known_ones():
    bench = LabelBench()
    done = fitted(LinearMultilabel(low=-3.0, high=-1.0, steps=2), bench)
    x, y = joined(bench)
    weight, bias = done.heads["both"]
    logits = x @ weight.T + bias
    probabilities = 1 / (1 + np.exp(-logits))
    assert done.train["n"] == 350
    ap = mean_of_known(average_precision_score, y, logits)
    assert done.train["mean_ap"] == pytest.approx(ap, abs=1e-9)
    assert done.train["roc_auc"] == pytest.approx(mean_of_known(roc_auc_score, y, logits), abs=1e-9)
    assert done.train["loss"] == pytest.approx(log_loss(y[y >= 0], probabilities[y >= 0]), rel=1e-6)


def test_no_image_votes_on_itself():
    bench = PixelBench()
    done = fitted(KNN(k=(5,)), bench)
    x, y = joined(bench)
    correct = 0
    for row in range(len(x)):
        others = np.delete(np.arange(len(x)), row)
        reference = KNeighborsClassifier(5, metric="cosine", weights=weigh, algorithm="brute")
        correct += int(reference.fit(x[others], y[others]).predict(x[[row]])[0] == y[row])
    assert done.train["n"] == 1100 and done.train["top1"] < 1.0
    assert done.train["top1"] == pytest.approx(correct / 1100, abs=2 / 1100)  # equal cosines
    assert set(done.train) == {"top1", "n"}


def test_the_nearest_of_many_copies_are_others_of_the_bank():
    x = np.concatenate([np.ones((6, 4)), np.eye(4)]).astype(np.float32)
    cosines, rows = nearest_others(x, np.arange(10), 3)
    assert rows.shape == cosines.shape == (10, 3)
    assert not (rows == np.arange(10)[:, None]).any()
    assert (rows[:6] < 6).all() and cosines[:6] == pytest.approx(1.0)
    few, of_few = nearest_others(x[:3], np.array([2, 0]), 200)  # more than there are
    assert sorted(of_few[0]) == [0, 1] and sorted(of_few[1]) == [1, 2] and few.shape == (2, 2)


def test_neighbours_of_many_images_are_searched_for_a_sample(monkeypatch):
    bench = PixelBench()
    whole = fitted(KNN(k=(5,)), bench).train["top1"]
    monkeypatch.setattr(on_train, "SCORED", 400)
    done = fitted(KNN(k=(5,)), bench)
    assert done.train["n"] == 400 and done.train["top1"] == pytest.approx(whole, abs=0.03)
    assert knn.KNN.images(KNN(), {"train": 800, "val": 300, "test": 7}).forward == 1107


def test_neighbours_with_several_labels():
    bench = LabelBench()
    done = fitted(KNNMultilabel(k=(7,)), bench)
    x, y = joined(bench)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    near = np.argsort(-cosines, axis=1)[:, :7]
    weight = np.exp(np.take_along_axis(cosines, near, 1) / 0.07)[:, :, None]
    shares = (weight * (y[near] == 1)).sum(1) / np.maximum((weight * (y[near] >= 0)).sum(1), 1e-300)
    assert done.train["mean_ap"] == pytest.approx(mean_of_known(average_precision_score, y, shares), abs=1e-3)
    assert set(done.train) == {"mean_ap", "roc_auc", "n"}


@pytest.mark.parametrize("head", ["logistic", "ridge"])
def test_few_shots_are_scored_on_the_images_that_were_drawn(head, monkeypatch):
    from mixmim_bench.protocols.classification import fewshot

    monkeypatch.setattr(fewshot, "HEADS", (head,))
    bench = PixelBench()
    done = fitted(FewShot(shots=(3, 10, 25), draws=2, C=(1e-3,), alpha=(10.0,)), bench)
    assert done.train["n"] == 100  # of the ten shots in tables
    if head == "ridge":
        assert set(done.train) == {"top1", "n"} and 0.5 < done.train["top1"] <= 1.0
        return
    expected = []
    for draw in range(2):
        rows, ranks = draw_order(labels(bench, "train"), 0, draw)
        rows = rows[ranks < 10]
        x, y = StandardScaler().fit_transform(bench.x["train"][rows]), labels(bench, "train")[rows]
        reference = LogisticRegression(C=1e-3, tol=1e-9, max_iter=5000).fit(x, y)
        expected.append((reference.score(x, y), log_loss(y, reference.predict_proba(x))))
    assert done.train["top1"] == pytest.approx(np.mean(expected, axis=0)[0], abs=0.005)
    assert done.train["loss"] == pytest.approx(np.mean(expected, axis=0)[1], rel=1e-3)


def test_few_shots_of_several_labels():
    bench = LabelBench()
    done = fitted(FewShotMultilabel(shots=(10,), draws=3, C=(1e-2,)), bench)
    y, sizes, losses = labels(bench, "train"), [], []
    for draw in range(3):
        rows = draw_shots(y, [10], 0, draw)[10]
        total, known = 0.0, 0
        for k in range(4):
            own = rows[y[rows, k] >= 0]
            x = StandardScaler().fit_transform(bench.x["train"][own])
            reference = LogisticRegression(C=1e-2, tol=1e-9, max_iter=5000).fit(x, y[own, k])
            total += log_loss(y[own, k], reference.predict_proba(x), normalize=False)
            known += len(own)
        sizes.append(len(rows))
        losses.append(total / known)
    assert done.train["n"] == round(np.mean(sizes))
    assert done.train["loss"] == pytest.approx(np.mean(losses), rel=1e-3)


def test_a_metric_that_train_does_not_define_is_left_out():
    y = np.ones((4, 2), np.int64)  # every image has every label
    scored = on_train.of_scores(("mean_ap",), [(y, np.zeros((4, 2)))])
    assert scored == {"n": 4, "loss": pytest.approx(np.log(2))}
    assert on_train.of_scores(("top1",), []) == {}
    with pytest.raises(ValueError, match="diverged"):
        on_train.of_scores(("top1",), [(y[:, 0], np.full((4, 2), np.nan))])


def test_the_mean_over_classes_needs_no_table_of_images_and_classes():
    rng = np.random.default_rng(0)
    y, scores = rng.integers(0, 9, 400), rng.normal(size=(400, 9))
    items = metrics.items_of("mean_per_class", y, scores)
    weights = rng.integers(0, 4, (3, 400)).astype(float)
    values = metrics.METRICS["mean_per_class"].reduce(items, weights)
    for value, weight in zip(values, weights, strict=True):
        expected = balanced_accuracy_score(y, scores.argmax(1), sample_weight=weight)
        assert value == pytest.approx(expected, abs=1e-12)


# -- trainings ----------------------------------------------------------------------------------------


def last_epoch(path):
    """The mean loss of the last epoch of a log with one row a step."""
    rows = list(csv.DictReader(path.read_text().splitlines()))
    last = np.ceil(float(rows[-1]["epoch"]))
    return np.mean([float(row["loss"]) for row in rows if np.ceil(float(row["epoch"])) == last])


def test_fine_tuning_records_the_loss_of_the_last_epoch_and_scores_train_unaugmented(tmp_path):
    bench, data = bench_for(digits(epochs=2, base_lr=1e-2, batch_size=32))
    bench.logs = tmp_path
    splits = splits_of(data, 80)
    recipe = build_protocol(bench.run.protocol, "classification")
    done = recipe.fit(bench, splits["train"], splits["val"])
    assert done.train["loss"] == pytest.approx(last_epoch(tmp_path / "fine-tuning.csv"), abs=1e-6)
    both = Split("both", join([splits["train"].part, splits["val"].part]))
    predicted = done.predict(both)
    assert done.train["n"] == 160  # 200 at least, if there are as many
    assert done.train["top1"] == accuracy_score(both.part.labels, predicted.scores.argmax(1))
    assert done.arrays["train_top1"] == done.train["top1"]


def test_scoring_adds_a_tenth_to_a_training_at_most():
    counts = {"train": 40_000, "val": 10_000, "test": 5_000}
    long = Finetune(epochs=10, warmup_epochs=0.0)
    assert long.images(counts).forward == 5_000 + 10_000
    short = Finetune(epochs=1, warmup_epochs=0.0)
    few = {"train": 4_000, "val": 1_000, "test": 500}
    assert short.images(few).forward == 500 + 1_500  # a tenth of 3 * 5,000
    assert short.images({"train": 80, "val": 20, "test": 10}).forward == 10 + 100
    assert LinearSGD(epochs=2, warmup_epochs=0.0).images(few).forward == 500 + 2 * 5_000 + 1_000
    maps = FinetuneSegmentation(steps=20, warmup_steps=1, batch_size=5)
    assert maps.images(few).forward == 500 + 30
    assert FinetuneSegmentation().images(few).forward == 500 + 200
    assert scored_again(7, 1.0) == 1


def test_linear_by_sgd_scores_features_that_are_not_augmented(my_task, tmp_path):
    bench, splits = bench_of(read_task(my_task))
    bench.logs = tmp_path
    protocol = LinearSGD(epochs=12, warmup_epochs=1.0, batch_size=15, base_lr=(100.0,), hflip=0.0)
    done = protocol.fit(bench, splits["train"], splits["val"])
    assert done.train["loss"] == pytest.approx(last_epoch(tmp_path / "training-the-head.csv"), abs=1e-6)
    scores = [done.predict(splits[role]) for role in ("train", "val")]
    expected = accuracy_score(
        np.concatenate([each.y for each in scores]),
        np.concatenate([each.scores.argmax(1) for each in scores]),
    )
    assert done.train["n"] == 60 and done.train["top1"] == pytest.approx(expected, abs=1e-12)


SHORT = {"steps": 40, "warmup_steps": 1, "batch_size": 4}


@pytest.mark.parametrize("protocol", ["linear", "finetune"])
def test_label_maps_of_train_are_scored_as_those_of_test(protocol, tmp_path, monkeypatch):
    task = read_task(small_scenes(tmp_path, "digit-scenes-seg"))
    seen, real = [], on_train.of_items

    def kept(items, n):
        seen.append((items["miou"], n))
        return real(items, n)

    monkeypatch.setattr("mixmim_bench.protocols.label_maps.of_items", kept)
    changes = {**SHORT, **({"width": 16} if protocol == "finetune" else {"stages": ["all"]})}
    (record, arrays), bench = run_of(task, protocol, **changes)
    ((items, n),) = seen
    right_pixels, predicted, labelled = (each.sum(0) for each in items)
    union = predicted + labelled - right_pixels
    assert record.train["n"] == n == (48 if protocol == "finetune" else 50)  # 48: a tenth of 40 * 4 * 3
    assert record.train["miou"] == pytest.approx((right_pixels / np.maximum(union, 1))[union > 0].mean())
    assert record.train["aacc"] == pytest.approx(right_pixels.sum() / labelled.sum())
    assert record.train["loss"] == arrays["fit_train_loss"][-1]
    assert {"skipped_train", "skipped_val", "skipped_test"} <= set(record.counts) and record.data_bytes
    assert len(bench._digests["train"]) == record.counts["n_train"]  # of all, not of those that are scored


def test_detection_records_its_loss(tmp_path):
    task = read_task(small_scenes(tmp_path, "digit-scenes-det"))
    small = {"width": 16, "box_width": 16, "proposals": 20, "sampled": 8, "batch_size": 2}
    (record, arrays), _ = run_of(task, "frozen", steps=3, warmup_steps=1, **small)
    assert record.train == {"loss": arrays["fit_train_loss"][-1], "n": 6}


# -- records and reports ------------------------------------------------------------------------------

TRAIN = {"top1": 0.953, "loss": 0.1234567, "n": 1437}


def test_old_records_have_no_scores_of_train_and_new_ones_keep_their_ids():
    values = json.loads(made(train=TRAIN).to_json())
    assert record_of(values).train == TRAIN and values["run_id"] == made().run_id
    del values["train"]
    assert record_of(values).train == {} and record_of(values).run_id == made().run_id


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({"top1": 1.5}, "train.top1"),
        ({"top1": "0.9"}, "train.top1"),
        ({"top1": None}, "train.top1"),
        ({"loss": float("nan")}, "train.loss"),
        ({"loss": float("inf")}, "train.loss"),
        ({"n": 0}, "train.n"),
        ({"n": 1.5}, "train.n"),
        ({"top5": 0.9}, "train: 'top5' is not a metric of the task"),
        ([], "train"),
    ],
)
def test_scores_of_train_are_checked(train, told):
    values = {**json.loads(made().to_json()), "train": train}
    with pytest.raises(NotARecord, match=told):
        record_of(values)


def test_a_bundle_keeps_the_scores_of_train(tmp_path):
    store = saved(tmp_path / "mine", {"a": right(0.9, 0)}, costs=False)
    (record,) = store.records()
    store.save(dataclasses.replace(record, train=TRAIN), store.arrays(record.run_id))
    write_bundle(store, store.records(), tmp_path / "mine.zip")
    yours = RunStore(tmp_path / "yours")
    assert len(merge(yours, tmp_path / "mine.zip").added) == 1
    assert yours.records()[0].train == TRAIN


def test_the_long_table_has_train_beside_test():
    records = [
        made("a", 0.9, train=TRAIN, scores={"top1": {"value": 0.9}, "top1 ridge 5-shot": {"value": 0.8}}),
        made("b", 0.8),
    ]
    frame = to_long(records, {}).set_index(["model", "metric"])
    columns = ["train", "train_loss", "train_n"]
    assert frame.loc[("a", "top1"), columns].tolist() == [0.953, 0.1234567, 1437]
    assert frame.loc[("a", "top1 ridge 5-shot"), columns].isna().all()
    assert frame.loc[("b", "top1"), columns].isna().all()
    assert str(frame["train_n"].dtype) == "Int64"


def test_show_and_page_have_the_scores_of_train(tmp_path):
    store = saved(tmp_path, {"a": right(0.9, 0)})
    (record,) = store.records()
    assert "on train" not in describe(store, record)
    record = dataclasses.replace(record, train=TRAIN)
    store.save(record, store.arrays(record.run_id))
    assert "on train    top1 95.3 %, loss 0.1235; n 1437" in describe(store, record).splitlines()
    write_report(store)
    page = (tmp_path / "report.html").read_text()
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert data["records"][record.run_id]["train"] == TRAIN


@in_browser
def test_the_record_in_the_page_has_train_beside_test(tmp_path):
    from playwright.sync_api import sync_playwright

    store = saved(tmp_path, {"a": right(0.9, 0), "b": right(0.8, 1)})
    for record in store.records():
        train = TRAIN if record.model == "a" else {}
        store.save(dataclasses.replace(record, train=train), store.arrays(record.run_id))
    write_report(store)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto((tmp_path / "report.html").as_uri())
        shown = []
        for button in page.locator("#board button.score").all():
            button.click()
            shown.append(page.locator("#record-body").inner_text())
            page.keyboard.press("Escape")
        browser.close()
    with_train, without = shown
    assert "n 500; on train 95.3 %" in with_train
    assert "loss on train\n0.1235" in with_train and "train images scored\n1437" in with_train
    assert "on train" not in without and "train images scored" not in without
