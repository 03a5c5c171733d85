"""The probes, against scikit-learn; and that test is out of reach until the choice is made."""

from contextlib import contextmanager

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.preprocessing import StandardScaler

from mixmim_bench.bench import Split
from mixmim_bench.data.images import Arrays, Part
from mixmim_bench.errors import BenchError
from mixmim_bench.features.extract import Features
from mixmim_bench.protocols import (
    build_protocol,
    check_values,
    find_protocol,
    kinds,
    load_protocols,
    resolve_protocol,
)
from mixmim_bench.protocols.knn import KNN
from mixmim_bench.protocols.linear import Linear

PROTOCOLS = load_protocols()


class PixelBench:
    """Digits whose features are their pixels; remembers what was asked for."""

    def __init__(self, sealed=()):
        data = load_digits()
        bounds = {"train": (0, 800), "val": (800, 1100), "test": (1100, 1797)}
        self.splits, self.sealed, self.num_classes, self.stages = {}, set(sealed), 10, self
        for role, (start, stop) in bounds.items():
            ids = np.arange(start, stop).astype(str)
            pixels = data.images[start:stop].astype(np.uint8)
            self.splits[role] = Split(role, Part(ids, data.target[start:stop], Arrays(pixels, role)))
        self.x = {role: data.data[a:b].astype(np.float32) for role, (a, b) in bounds.items()}

    def features(self, split):
        assert split.role not in self.sealed, f"{split.role} is sealed"
        part = self.splits[split.role].part
        return Features(self.x[split.role], part.labels, part.ids)

    @contextmanager
    def stage(self, *_):
        yield lambda _: None


def fitted(protocol, bench):
    return protocol.fit(bench, bench.splits["train"], bench.splits["val"])


@pytest.mark.parametrize("protocol", [Linear(), KNN()], ids=lambda p: p.name)
def test_nothing_is_read_from_test_before_the_choice(protocol):
    bench = PixelBench(sealed=["test"])
    done = fitted(protocol, bench)
    bench.sealed = {"train", "val"}
    predicted = done.predict(bench.splits["test"])
    assert (predicted.scores.argmax(1) == predicted.y).mean() > 0.9
    assert predicted.ids.tolist() == bench.splits["test"].part.ids.tolist()


@pytest.mark.parametrize("protocol", [Linear(), KNN()], ids=lambda p: p.name)
def test_two_fits_are_one(protocol):
    scores = [fitted(protocol, b).predict(b.splits["test"]).scores for b in (PixelBench(), PixelBench())]
    assert np.array_equal(*scores)


def test_linear_is_scikit_learns_with_the_c_that_is_best_on_val():
    bench = PixelBench()
    grid = np.logspace(-3, 1, 5)
    done = fitted(Linear(low=-3.0, high=1.0, steps=5), bench)
    scaler = StandardScaler().fit(bench.x["train"])
    y, y_val = (bench.splits[role].part.labels for role in ("train", "val"))
    accuracy = [
        LogisticRegression(C=c, max_iter=1000)
        .fit(scaler.transform(bench.x["train"]), y)
        .score(scaler.transform(bench.x["val"]), y_val)
        for c in grid
    ]
    assert np.abs(done.arrays["val_top1"] - accuracy).max() < 0.02  # warm starts stop a little elsewhere
    assert done.chosen["C"] == grid[np.argmax(done.arrays["val_top1"])]

    both = np.concatenate([bench.x["train"], bench.x["val"]])
    scaler = StandardScaler().fit(both)
    refitted = LogisticRegression(C=done.chosen["C"], max_iter=1000)
    refitted.fit(scaler.transform(both), np.concatenate([y, y_val]))
    expected = refitted.predict_log_proba(scaler.transform(bench.x["test"]))
    np.testing.assert_allclose(done.predict(bench.splits["test"]).scores, expected, atol=1e-3)


def test_linear_withstands_features_that_are_constant():
    bench = PixelBench()
    for role in bench.x:
        bench.x[role] = np.hstack([bench.x[role], np.full((len(bench.x[role]), 3), 1e4, np.float32)])
    predicted = fitted(Linear(), bench).predict(bench.splits["test"])
    assert (predicted.scores.argmax(1) == predicted.y).mean() > 0.9


def test_a_class_that_train_lacks_is_never_predicted():
    bench = PixelBench()
    for role in ("train", "val"):
        part = bench.splits[role].part
        keep = np.flatnonzero(part.labels != 4)
        bench.splits[role] = Split(role, part.take(keep))
        bench.x[role] = bench.x[role][keep]
    scores = fitted(Linear(), bench).predict(bench.splits["test"]).scores
    assert scores.shape == (697, 10)
    assert not (scores.argmax(1) == 4).any()


def weigh(distance):
    return np.exp((1 - distance) / 0.07)


@pytest.mark.parametrize("k", [1, 10, 200])
def test_neighbours_are_those_of_scikit_learn(k):
    bench = PixelBench()
    bank, queries = bench.x["train"], bench.x["test"]
    y = bench.splits["train"].part.labels
    votes = KNN(k=(k,)).vote(bank, y, queries, 10)[0]
    reference = KNeighborsClassifier(k, metric="cosine", weights=weigh).fit(bank, y)
    expected = reference.predict_proba(queries)
    np.testing.assert_allclose(votes / votes.sum(1, keepdims=True), expected, atol=1e-4)


def test_neighbours_do_not_depend_on_chunks(monkeypatch):
    bench = PixelBench()
    y = bench.splits["train"].part.labels
    whole = KNN().vote(bench.x["train"], y, bench.x["test"], 10)
    monkeypatch.setattr("mixmim_bench.protocols.knn.CHUNK", 100)
    chunked = KNN().vote(bench.x["train"], y, bench.x["test"], 10)
    for one, other in zip(whole, chunked, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_fewer_images_than_neighbours():
    bench = PixelBench()
    votes = KNN().vote(bench.x["train"][:5], np.arange(5), bench.x["test"], 10)
    nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(bench.x["train"][:5])
    expected = nearest.kneighbors(bench.x["test"], return_distance=False)[:, 0]
    assert all(np.array_equal(scores.argmax(1), expected) for scores in votes)


# -- the table of protocols --------------------------------------------------------------------------


@pytest.mark.parametrize("key", PROTOCOLS, ids="-".join)
def test_every_protocol_describes_itself(key):
    cls = PROTOCOLS[key]
    assert (cls.name, cls.kind) == key
    assert cls.__doc__ and cls.title and cls.version >= 1 and "paper" in cls.presets
    assert isinstance(cls.stochastic, bool)
    for preset in cls.presets:
        values = resolve_protocol(*key, preset, {}, random_weights=False)
        again = build_protocol(values, cls.kind)
        assert again == cls(**check_values(cls, cls.presets[preset]))
        assert set(again.images({"train": 10, "val": 5, "test": 7})) == {"forward", "train"}


def test_values_are_defaults_then_preset_then_task():
    plain = resolve_protocol("finetune", "classification", "auto", {}, random_weights=False)
    untrained = resolve_protocol("finetune", "classification", "auto", {}, random_weights=True)
    assert plain["mixup"] == 0.8 and untrained["mixup"] == 0.0
    assert resolve_protocol("finetune", "classification", "paper", {}, random_weights=True) == plain
    by_task = resolve_protocol("finetune", "classification", "auto", {"mixup": 0.3, "epochs": 9}, True)
    assert (by_task["mixup"], by_task["epochs"], by_task["cutmix"]) == (0.3, 9, 0.0)


def test_wrong_protocols_and_presets_bring_the_nearest():
    with pytest.raises(BenchError, match="no protocol 'linaer' for classification tasks; did you mean lin"):
        find_protocol("linaer", "classification")
    with pytest.raises(BenchError, match="no preset 'papre'; did you mean paper"):
        resolve_protocol("linear", "classification", "papre", {}, False)
    with pytest.raises(BenchError, match=r"warmup_epochs is 5\.0 and must be below epochs, which is 3"):
        resolve_protocol("finetune", "classification", "paper", {"epochs": 3}, False)
    assert "classification" in kinds()


@pytest.mark.parametrize(
    ("protocol", "values", "told"),
    [
        ("finetune", {"batch_size": 0}, "batch_size must be at least 1"),
        ("finetune", {"warmup_epochs": -1.0}, "warmup_epochs must be at least 0"),
        ("finetune", {"base_lr": float("nan")}, "base_lr must be like"),
        ("finetune", {"crop_scale": (0.9, 0.1)}, "crop_scale must be two rising numbers"),
        ("knn", {"k": ("a",)}, "k must be like"),
        ("knn", {"k": (0, 5)}, "k must be whole numbers of at least 1"),
        ("knn", {"temperature": 0.0}, "temperature must be above 0"),
        ("linear", {"low": 3.0}, "low must not be above high"),
    ],
)
def test_values_out_of_range_are_refused(protocol, values, told):
    with pytest.raises(BenchError, match=told):
        resolve_protocol(protocol, "classification", "paper", values, False)


def test_small_temperatures_do_not_overflow():
    bench = PixelBench()
    y = bench.splits["train"].part.labels
    cold = KNN(temperature=1e-3).vote(bench.x["train"], y, bench.x["test"], 10)
    assert all(np.isfinite(scores).all() for scores in cold)
    assert (cold[-1].argmax(1) == bench.splits["test"].part.labels).mean() > 0.9
