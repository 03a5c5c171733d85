"""Scores of label maps and detections, against scikit-learn, pycocotools, faster-coco-eval and simulation."""

import contextlib
import io
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, jaccard_score

from mixmim_bench.errors import BenchError
from mixmim_bench.scoring.compare import Pair, Side, Unit
from mixmim_bench.scoring.detection import Found, match
from mixmim_bench.scoring.metrics import METRICS, score_items, value_of_items
from mixmim_bench.scoring.predictions import Detections, PixelCounts, restore
from mixmim_bench.scoring.segmentation import count_pixels

SIDE = 160
BOX_METRICS = [f"ap_box{end}" for end in ("", "_50", "_75", "_small", "_medium", "_large")]
MASK_METRICS = [name.replace("box", "mask") for name in BOX_METRICS]


# -- label maps --------------------------------------------------------------------------------------


def label_maps(seed, n=6, classes=5):
    rng = np.random.default_rng(seed)
    labels = [rng.integers(-1, classes, rng.integers(3, 12, 2)) for _ in range(n)]
    predicted = [np.where(rng.random(y.shape) < 0.6, y, rng.integers(0, classes, y.shape)) for y in labels]
    return labels, [np.where(p < 0, 0, p) for p in predicted]


def pixel_counts(labels, predicted, classes=5):
    counts = np.stack([count_pixels(y, p, classes) for y, p in zip(labels, predicted, strict=True)])
    return PixelCounts(np.arange(len(labels)).astype(str), counts)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_scores_of_label_maps_are_those_of_scikit_learn_over_all_pixels(seed):
    labels, predicted = label_maps(seed)
    scores = pixel_counts(labels, predicted).scores_by(["miou", "macc", "aacc"])
    y = np.concatenate([each.ravel() for each in labels])
    p = np.concatenate([each.ravel() for each in predicted])[y >= 0]
    y = y[y >= 0]
    assert scores["miou"]["value"] == pytest.approx(jaccard_score(y, p, average="macro"))
    assert scores["macc"]["value"] == pytest.approx(balanced_accuracy_score(y, p))
    assert scores["aacc"]["value"] == pytest.approx((y == p).mean())
    for each in scores.values():
        assert 0.0 <= each["low"] <= each["value"] <= each["high"] <= 1.0


def test_ignored_pixels_and_absent_classes_do_not_count():
    labels = np.array([[0, 0, -1, 2]])
    counts = count_pixels(labels, np.array([[0, 2, 1, 2]]), 4)
    assert counts.tolist() == [[1, 0, 1, 0], [1, 0, 2, 0], [2, 0, 1, 0]]
    # class 1 is predicted in an ignored pixel only, and class 3 nowhere: neither counts
    assert value_of_items("miou", list(counts[:, None])) == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_a_class_that_is_only_predicted_counts_as_zero():
    counts = count_pixels(np.zeros((1, 4), int), np.array([[0, 0, 0, 3]]), 4)
    assert value_of_items("miou", list(counts[:, None])) == pytest.approx((3 / 4 + 0) / 2)
    assert value_of_items("macc", list(counts[:, None])) == pytest.approx(3 / 4)


def test_the_mean_is_over_the_dataset_and_not_over_images():
    labels, predicted = label_maps(3, n=40)
    counts = pixel_counts(labels, predicted)
    matrix = sum(
        confusion_matrix(y[y >= 0], p[y >= 0], labels=range(5))
        for y, p in zip(labels, predicted, strict=True)
    )
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    assert counts.scores_by(["miou"])["miou"]["value"] == pytest.approx((np.diag(matrix) / union).mean())


def simulated_counts(rng, n, frequencies, accuracies):
    """Label maps of which each class occurs in some images only, with errors that vary by image."""
    K = len(frequencies)
    present = rng.random((n, K)) < frequencies
    present[:, 0] = True
    labelled = np.where(present, rng.gamma(1.2, 2000, (n, K)), 0).astype(np.int64)
    right = (labelled * np.clip(rng.normal(accuracies, 0.15, (n, K)), 0, 1)).astype(np.int64)
    wrong = (labelled - right).sum(1)
    predicted = right + (rng.dirichlet(np.full(K, 0.3), n) * wrong[:, None]).astype(np.int64)
    return np.stack([right, predicted, labelled], axis=1)


@pytest.mark.parametrize("name", ["miou", "macc", "aacc"])
def test_intervals_of_label_maps_cover_the_truth(name):
    """98, 99.5 and 98 % of 200 draws by benchmarks/dense_coverage.py."""
    rng = np.random.default_rng(0)
    frequencies, accuracies = np.linspace(0.5, 0.05, 20), rng.uniform(0.3, 0.9, 20)
    many = simulated_counts(rng, 100_000, frequencies, accuracies)
    truth = value_of_items(name, list(many.transpose(1, 0, 2)))
    covered = []
    for _ in range(100):
        drawn = simulated_counts(rng, 100, frequencies, accuracies)
        score = score_items(name, [list(drawn.transpose(1, 0, 2))])
        covered.append(score["low"] <= truth <= score["high"])
    assert np.mean(covered) >= 0.88  # three standard errors below 95 %


# -- detections --------------------------------------------------------------------------------------


def scenes(seed, n=24, K=4, crowds=True):
    """Objects and detections near them, as COCO's lists and as ours."""
    rng = np.random.default_rng(seed)
    images, annotations, results, truths, found = [], [], [], [], []
    for image in range(1, n + 1):
        k = int(rng.integers(0, 6))
        boxes = np.c_[rng.integers(0, 100, (k, 2)), rng.integers(4, 60, (k, 2))].astype(float)
        labels, crowd = rng.integers(0, K, k), (rng.random(k) < 0.2) & crowds
        masks = [mask.encode(np.asfortranarray(ellipse(box))) for box in boxes]
        areas = np.array([mask.area(each) for each in masks], dtype=float)
        for place in range(k):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(labels[place]) + 1,
                    "bbox": boxes[place].tolist(),
                    "area": float(areas[place]),
                    "iscrowd": int(crowd[place]),
                    "segmentation": {**masks[place], "counts": masks[place]["counts"].decode()},
                }
            )
        images.append({"id": image, "height": SIDE, "width": SIDE})
        d = int(rng.integers(0, 10))
        near = boxes[rng.integers(0, k, d)] if k else np.tile([20.0, 20, 30, 30], (d, 1))
        near = (near + rng.integers(-6, 7, (d, 4))).clip([0, 0, 3, 3], [100, 100, 60, 60])
        classes = rng.integers(0, K, d)
        scores = np.sort(rng.permutation(1000)[:d].astype(np.float32) / 1000 + image * 1e-6)[::-1]
        own = [mask.encode(np.asfortranarray(ellipse(box))) for box in near]
        for place in range(d):
            results.append(
                {
                    "image_id": image,
                    "category_id": int(classes[place]) + 1,
                    "bbox": near[place].tolist(),
                    "score": float(scores[place]),
                    "segmentation": own[place],
                }
            )
        corners = np.c_[boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]
        truths.append(
            SimpleNamespace(
                boxes=corners,
                labels=labels,
                crowd=crowd,
                areas=areas,
                masks=masks,
                absent=None,
                incomplete=None,
            )
        )
        found.append(Found(scores, classes, np.c_[near[:, :2], near[:, :2] + near[:, 2:]], own))
    coco = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": str(label), "frequency": "f"} for label in range(K)],
    }
    return coco, results, truths, found


def ellipse(box):
    x, y, w, h = box
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    inside = ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1
    return inside.astype(np.uint8)


def detections(truths, found, K=4, images_of_classes=None):
    boxes, masks = (
        [match(f, t, K, by_masks) for f, t in zip(found, truths, strict=True)] for by_masks in (False, True)
    )
    seen = np.full(K, 1000) if images_of_classes is None else images_of_classes
    return Detections(np.arange(len(found)).astype(str), found, boxes, masks, seen)


def by_pycocotools(coco, results, kind):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = coco
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:6]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_average_precisions_are_those_of_pycocotools(seed):
    coco, results, truths, found = scenes(seed)
    kept = detections(truths, found).kept([*BOX_METRICS, *MASK_METRICS])
    # with boxes, pycocotools takes their areas also for masks
    of_masks = [{key: value for key, value in each.items() if key != "bbox"} for each in results]
    for kind, names, own in (("bbox", BOX_METRICS, results), ("segm", MASK_METRICS, of_masks)):
        theirs = by_pycocotools(coco, own, kind)
        ours = [value_of_items(name, Detections.restore(name, kept).draws[0]) for name in names]
        np.testing.assert_allclose(np.nan_to_num(ours, nan=-1.0), theirs, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_average_precisions_of_lvis_are_those_of_faster_coco_eval(seed):
    from faster_coco_eval import COCO as FasterCOCO
    from faster_coco_eval import COCOeval_faster

    coco, results, truths, found = scenes(seed, crowds=False)
    rng = np.random.default_rng(seed)
    for image, truth in zip(coco["images"], truths, strict=True):
        other = np.setdiff1d(np.arange(4), truth.labels)
        truth.absent = other[rng.random(len(other)) < 0.5]
        truth.incomplete = np.unique(truth.labels)[rng.random(len(np.unique(truth.labels))) < 0.3]
        image["neg_category_ids"] = (truth.absent + 1).tolist()
        image["not_exhaustive_category_ids"] = (truth.incomplete + 1).tolist()
    coco["categories"] = [
        {**each, "frequency": frequency} for each, frequency in zip(coco["categories"], "rcff", strict=True)
    ]
    truth = FasterCOCO(coco)
    evaluation = COCOeval_faster(truth, truth.loadRes(results), "bbox", lvis_style=True, print_function=str)
    evaluation.params.maxDets = [300]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    theirs = evaluation.stats_as_dict
    names = {"ap_box": "AP_all", "ap_box_50": "AP_50", "ap_box_rare": "APr", "ap_box_frequent": "APf"}
    ours = detections(truths, found, images_of_classes=np.array([3, 50, 500, 500])).scores_by(names)
    for name, other in names.items():
        assert ours[name]["value"] == pytest.approx(theirs[other], abs=1e-9), name


def test_intervals_and_pairs_of_detections_are_by_image():
    _, _, truths, found = scenes(5, n=60)
    ours = detections(truths, found)
    score = ours.scores_by(["ap_box"])["ap_box"]
    assert score["low"] < score["value"] < score["high"] and score["resamples"] == 100 and score["n"] == 60
    worse = [Found(f.scores, f.labels, f.boxes + np.array([3, 3, 3, 3.0]), f.masks) for f in found]
    sides = []
    for each in (ours, detections(truths, worse)):
        kept = restore("detection", "ap_box", each.kept(["ap_box"]))
        sides.append(Side({(0, 0): Unit(kept.ids, kept.draws)}, drawn=False, one_network=False))
    pair = Pair("ap_box", *sides)
    assert pair.first == pytest.approx(score["value"]) and pair.n == 60
    assert pair.low <= pair.first - pair.second <= pair.high


def simulated_detections(rng, n, frequencies, qualities, most=12):
    K = len(frequencies)
    objects = rng.poisson(frequencies, (n, K)).clip(0, 4)
    scores, labels = np.zeros((n, most), np.float32), np.full((n, most), -1, np.int16)
    hits = np.zeros((n, most), np.uint16)
    for image in range(n):
        place = 0
        easy = rng.normal()
        for k in range(K):
            for right in [True] * objects[image, k] + [False] * rng.poisson(0.2):
                if place < most and (not right or rng.random() < qualities[k]):
                    certainty = rng.normal(1 + 0.5 * easy if right else -0.5)
                    scores[image, place], labels[image, place] = 1 / (1 + np.exp(-certainty)), k
                    hits[image, place] = (1 << rng.integers(1, 11)) - 1 if right else 0
                    place += 1
    return [scores, labels, hits, np.zeros_like(hits), objects.astype(np.uint16)]


def test_intervals_of_average_precision_cover_the_truth():
    """92 % of 200 draws by benchmarks/dense_coverage.py."""
    rng = np.random.default_rng(0)
    frequencies, qualities = np.linspace(0.5, 0.06, 8), rng.uniform(0.3, 0.9, 8)
    truth = value_of_items("ap_box", simulated_detections(rng, 10_000, frequencies, qualities))
    covered = []
    for _ in range(60):
        score = score_items("ap_box", [simulated_detections(rng, 150, frequencies, qualities)])
        covered.append(score["low"] <= truth <= score["high"])
    assert np.mean(covered) >= 0.86  # three standard errors below 95 %


# -- what is kept ------------------------------------------------------------------------------------


def test_what_is_kept_gives_the_same_scores(tmp_path):
    labels, predicted = label_maps(1)
    maps = pixel_counts(labels, predicted)
    _, _, truths, found = scenes(2)
    objects = detections(truths, found)
    for kind, predictions, names in (
        ("segmentation", maps, ["miou", "macc", "aacc"]),
        ("detection", objects, [*BOX_METRICS, *MASK_METRICS]),
    ):
        np.savez(tmp_path / "kept.npz", **predictions.kept(names))
        with np.load(tmp_path / "kept.npz", allow_pickle=False) as arrays:
            for name, score in predictions.scores_by(names).items():
                kept = restore(kind, name, arrays)
                assert value_of_items(name, kept.draws[0]) == pytest.approx(score["value"], nan_ok=True)
            with pytest.raises(BenchError, match="hold no"):
                restore(kind, names[0], {"ids": arrays["ids"]})


def test_no_objects_at_all_are_no_score():
    empty = Found(np.empty(0, np.float32), np.empty(0, int), np.empty((0, 4)), [])
    truth = SimpleNamespace(
        boxes=np.empty((0, 4)),
        labels=np.empty(0, int),
        crowd=np.empty(0, bool),
        areas=np.empty(0),
        masks=[],
        absent=None,
        incomplete=None,
    )
    with pytest.raises(ValueError, match="no class occurs"):
        detections([truth] * 3, [empty] * 3).scores_by(["ap_box"])


def test_every_dense_metric_has_a_kind_of_its_own():
    assert {METRICS[name].kinds for name in (*BOX_METRICS, *MASK_METRICS)} == {("detection",)}
    assert METRICS["miou"].kinds == ("segmentation",)
