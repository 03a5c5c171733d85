"""The probes, against scikit-learn; and that test is out of reach until the choice is made."""

import dataclasses
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from test_store import bench_of

from mixmim_bench.data.dataset import Split, TaskData, open_task
from mixmim_bench.data.images import Arrays, Part
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import BenchError
from mixmim_bench.features.extract import Features
from mixmim_bench.hyperparameters import check_values
from mixmim_bench.machine import Machine
from mixmim_bench.protocols import (
    build_protocol,
    find_protocol,
    kinds,
    load_protocols,
    resolve_protocol,
)
from mixmim_bench.protocols.classification.fewshot import FewShot
from mixmim_bench.protocols.classification.fewshot import _order as draw_order
from mixmim_bench.protocols.classification.knn import KNN
from mixmim_bench.protocols.classification.linear import Linear
from mixmim_bench.protocols.classification.linear_sgd import LinearSGD
from mixmim_bench.protocols.contract import Workload, later
from mixmim_bench.specs import DataSource, Run
from mixmim_bench.suite.execute import execute, open_run
from mixmim_bench.suite.taskfile import read_task

PROTOCOLS = load_protocols()


class PixelBench:
    """Digits whose features are their pixels, or `half` of them; remembers what was asked for."""

    metric, metrics, seed, machine = "top1", ("top1",), 0, Machine(device="cpu")

    def __init__(self, sealed=()):
        data = load_digits()
        bounds = {"train": (0, 800), "val": (800, 1100), "test": (1100, 1797)}
        self.splits, self.sealed, self.num_classes, self.stages = {}, set(sealed), 10, self
        for role, (start, stop) in bounds.items():
            ids = np.arange(start, stop).astype(str)
            pixels = data.images[start:stop].astype(np.uint8)
            self.splits[role] = Split(role, Part(ids, data.target[start:stop], Arrays(pixels, role)))
        self.x = {role: data.data[a:b].astype(np.float32) for role, (a, b) in bounds.items()}

    def layers(self, layer):
        return ["half", "own"] if layer == "auto" else [layer]

    def features(self, split, layer="own"):
        assert split.role not in self.sealed, f"{split.role} is sealed"
        part, x = self.splits[split.role].part, self.x[split.role]
        rows = np.arange(len(part))
        digests = np.zeros((len(part), 16), np.uint8)
        return Features(x[:, :16] if layer == "half" else x, part.labels, part.ids, rows, digests)

    def features_of_layers(self, split, layers):
        return {layer: self.features(split, layer) for layer in layers}

    @contextmanager
    def stage(self, *_):
        yield lambda _: None


def fitted(protocol, bench):
    return protocol.fit(bench, bench.splits["train"], bench.splits["val"])


def labels(bench, *roles):
    return np.concatenate([bench.splits[role].part.labels for role in roles])


QUICK_PROBES = [Linear(steps=12), KNN(), FewShot(shots=(2, 10), draws=2), Linear(steps=12, layers="auto")]


@pytest.mark.parametrize("protocol", QUICK_PROBES, ids=lambda p: f"{p.name} {p.layers}")
def test_nothing_is_read_from_test_before_the_choice(protocol):
    bench = PixelBench(sealed=["test"])
    done = fitted(protocol, bench)
    bench.sealed = {"train", "val"}
    predicted = done.predict(bench.splits["test"])
    assert predicted.scores_by(["top1"])["top1"]["value"] > 0.85
    assert predicted.ids.tolist() == bench.splits["test"].part.ids.tolist()


@pytest.mark.parametrize("protocol", QUICK_PROBES[:3], ids=lambda p: p.name)
def test_two_fits_are_one(protocol):
    kept = [
        fitted(protocol, b).predict(b.splits["test"]).kept(["top1"]) for b in (PixelBench(), PixelBench())
    ]
    assert all(np.array_equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_linear_is_scikit_learns_with_the_c_that_is_best_on_val():
    bench = PixelBench()
    grid = np.logspace(-3, 1, 5)
    done = fitted(Linear(low=-3.0, high=1.0, steps=5), bench)
    scaler = StandardScaler().fit(bench.x["train"])
    probabilities = np.array(
        [
            LogisticRegression(C=c, max_iter=5000, tol=1e-6)
            .fit(scaler.transform(bench.x["train"]), labels(bench, "train"))
            .predict_proba(scaler.transform(bench.x["val"]))
            for c in grid
        ]
    )
    hits = probabilities.argmax(2) == labels(bench, "val")
    assert np.abs(done.arrays["val_top1"] - hits.mean(1)).max() <= 2 / 300
    losses = [log_loss(labels(bench, "val"), each) for each in probabilities]
    np.testing.assert_allclose(done.arrays["val_log_loss"], losses, atol=0.002)
    # of those that differ from the best by no more than a paired standard error the lowest log-loss
    best = hits.mean(1).argmax()
    tied = hits[best].sum() - hits.sum(1) <= np.sqrt((hits != hits[best]).sum(1))
    assert done.chosen["C"] == grid[tied][np.argmin(np.array(losses)[tied])]

    both = np.concatenate([bench.x["train"], bench.x["val"]])
    scaler = StandardScaler().fit(both)
    refitted = LogisticRegression(C=done.chosen["C"], max_iter=5000, tol=1e-8)
    refitted.fit(scaler.transform(both), labels(bench, "train", "val"))
    expected = refitted.predict_proba(scaler.transform(bench.x["test"]))
    np.testing.assert_allclose(np.exp(done.predict(bench.splits["test"]).scores), expected, atol=0.02)


def test_linear_chooses_the_layer_on_val():
    done = fitted(Linear(steps=12, layers="auto"), PixelBench())
    assert done.chosen["layer"] == "own"
    assert done.chosen["ridge_val_top1 own"] > done.chosen["ridge_val_top1 half"]


def test_linear_chooses_by_the_metric_of_the_task():
    """Of rare classes a small C knows nothing, which accuracy hardly sees."""
    bench = PixelBench()
    bench.metric = "mean_per_class"
    done = fitted(Linear(steps=6), bench)
    assert "val_mean_per_class" in done.chosen and done.arrays["val_mean_per_class"].max() > 0.9


def test_linear_withstands_features_that_are_constant():
    bench = PixelBench()
    for role in bench.x:
        bench.x[role] = np.hstack([bench.x[role], np.full((len(bench.x[role]), 3), 1e4, np.float32)])
    predicted = fitted(Linear(steps=12), bench).predict(bench.splits["test"])
    assert (predicted.scores.argmax(1) == predicted.y).mean() > 0.9


def test_linear_says_what_it_could_not_solve():
    done = fitted(Linear(steps=2, max_iter=2), PixelBench())
    assert any("not solved to tol 5e-05: 1.0e+05" in note for note in done.notes)


@pytest.mark.parametrize("protocol", QUICK_PROBES[:3], ids=lambda p: p.name)
def test_a_class_that_train_lacks_is_never_predicted(protocol):
    bench = PixelBench()
    for role in ("train", "val"):
        part = bench.splits[role].part
        keep = np.flatnonzero(part.labels != 4)
        bench.splits[role] = Split(role, part.take(keep))
        bench.x[role] = bench.x[role][keep]
    predicted = fitted(protocol, bench).predict(bench.splits["test"])
    best = predicted.kept(["top1"])["best"][..., 0]
    assert best.shape[-1] == 697 and not (best == 4).any()


def weigh(distance):
    return np.exp((1 - distance) / 0.07)


@pytest.mark.parametrize("k", [1, 10, 200])
def test_knn_is_that_of_scikit_learn(k):
    bench = PixelBench()
    done = fitted(KNN(k=(k,)), bench)
    votes = done.predict(bench.splits["test"]).scores
    both = np.concatenate([bench.x["train"], bench.x["val"]])
    reference = KNeighborsClassifier(k, metric="cosine", weights=weigh).fit(
        both, labels(bench, "train", "val")
    )
    expected = reference.predict_proba(bench.x["test"])
    np.testing.assert_allclose(votes / votes.sum(1, keepdims=True), expected, atol=1e-4)


def test_knn_chooses_layer_and_k_on_val():
    done = fitted(KNN(layers="auto"), PixelBench())
    assert done.arrays["val_top1"].shape == (8,) and done.chosen["val_top1"] == done.arrays["val_top1"].max()
    assert done.chosen["layer"] == "own" and done.chosen["k"] in (10, 20)


def test_fewer_images_than_neighbours():
    bench = PixelBench()
    bench.x["train"], part = bench.x["train"][:5], bench.splits["train"].part
    bench.splits["train"] = Split("train", part.take(np.arange(5)))
    scores = fitted(KNN(k=(200,)), bench).predict(bench.splits["test"]).scores
    assert scores.shape == (697, 10) and np.isfinite(scores).all()


def test_small_temperatures_do_not_overflow():
    bench = PixelBench()
    cold = fitted(KNN(temperature=1e-3), bench).predict(bench.splits["test"]).scores
    assert np.isfinite(cold).all()
    assert (cold.argmax(1) == labels(bench, "test")).mean() > 0.9


# -- few shots ----------------------------------------------------------------------------------------


def test_draws_have_as_many_images_of_each_class_and_more_hold_the_fewer():
    y = np.random.default_rng(0).integers(0, 10, 500)
    rows, ranks = draw_order(y, 3, 1)
    assert sorted(rows) == list(range(500))
    for shots in (1, 5, 25):
        assert (np.bincount(y[rows[ranks < shots]], minlength=10) == shots).all()
    assert set(rows[ranks < 1]) < set(rows[ranks < 5])
    assert not np.array_equal(rows, draw_order(y, 3, 2)[0])


def test_fewshot_is_scikit_learn_on_the_same_images():
    bench = PixelBench()
    done = fitted(FewShot(shots=(10,), draws=2, C=(0.1,), alpha=(0.1,)), bench)
    predicted = done.predict(bench.splits["test"])
    for draw in range(2):
        rows, ranks = draw_order(labels(bench, "train"), 0, draw)
        rows = rows[ranks < 10]
        scaler = StandardScaler().fit(bench.x["train"][rows])
        x, y = scaler.transform(bench.x["train"][rows]), labels(bench, "train")[rows]
        test = scaler.transform(bench.x["test"])
        logistic = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(x, y).predict(test)
        ridge = Ridge(alpha=0.1 * len(x)).fit(x, np.eye(10)[y]).predict(test).argmax(1)
        for head, theirs in (("logistic", logistic), ("ridge", ridge)):
            ours = predicted.others[f"{head} 10-shot"][draw].argmax(1)
            assert (ours == theirs).mean() > 0.995


def test_fewshot_tells_mean_deviation_and_every_setting():
    bench = PixelBench()
    done = fitted(FewShot(shots=(1, 25), draws=3), bench)
    scores = done.predict(bench.splits["test"]).scores_by(["top1"])
    assert set(scores) == {"top1"} | {f"top1 {h} {s}-shot" for h in ("ridge", "logistic") for s in (1, 25)}
    assert done.chosen["shots"] == 1 and done.chosen["head"] in ("ridge", "logistic")
    one, many = scores["top1 logistic 1-shot"], scores["top1 logistic 25-shot"]
    assert one["low"] < one["value"] < one["high"] and one["value"] < many["value"]
    assert one["std"] > many["std"] > 0
    assert scores["top1"]["draws"] == 3 and scores["top1"]["interval"] == "wilson over draws"


def test_classes_with_fewer_images_than_shots_are_told():
    bench = PixelBench()
    bench.splits["train"] = Split("train", bench.splits["train"].part.take(np.arange(100)))
    bench.x["train"] = bench.x["train"][:100]
    assert any("fewer than the 25 shots requested" in note for note in fitted(FewShot(draws=1), bench).notes)


# -- by SGD, on images --------------------------------------------------------------------------------


def test_linear_sgd_learns_and_chooses_among_its_heads(my_task):
    bench, splits = bench_of(read_task(my_task))
    protocol = LinearSGD(
        optimizer="sgd",
        base_lr=(1e-3, 10.0),
        layers=("own", "stage2"),
        norm="none",
        epochs=3,
        warmup_epochs=0.0,
        batch_size=16,
        crop_scale=(0.8, 1.0),
        hflip=0.0,
    )
    done = protocol.fit(bench, splits["train"], splits["val"])
    assert done.arrays["val_top1"].shape == (4,) and len(done.arrays["train_loss"]) == 3
    assert done.chosen["val_top1"] == done.arrays["val_top1"].max()
    assert (done.chosen["layer"], done.chosen["base_lr"]) in [
        (a, b) for a in ("own", "stage2") for b in (1e-3, 10.0)
    ]
    scores = done.predict(splits["test"])
    assert scores.scores.shape == (30, 3) and len(scores) == 30


def test_one_head_is_trained_on_train_and_val_at_once(my_task):
    bench, splits = bench_of(read_task(my_task))
    protocol = LinearSGD(
        epochs=20, warmup_epochs=1.0, batch_size=15, base_lr=(100.0,), crop_scale=(0.9, 1.0), hflip=0.0
    )
    done = protocol.fit(bench, splits["train"], splits["val"])
    assert bench.stages.counted == {"training the head": [20 * 60, 20 * 60], "scoring train": [60, 60]}
    assert done.arrays["train_loss"][-1] < 0.8 * done.arrays["train_loss"][0]
    assert protocol.images({"train": 48, "val": 12, "test": 30}) == Workload(forward=20 * 60 + 60 + 30)
    predicted = done.predict(splits["test"])
    assert (predicted.scores.argmax(1) == predicted.y).mean() > 0.5


def test_the_recipes_of_mae_and_dinov2():
    mae = resolve_protocol("linear-sgd", "classification", "paper", {}, random_weights=False).to_dict()
    assert (mae["optimizer"], mae["base_lr"], mae["epochs"], mae["batch_size"]) == ("lars", [0.1], 90, 16384)
    assert (mae["warmup_epochs"], mae["norm"], mae["layers"]) == (10.0, "batch", ["own"])
    dinov2 = resolve_protocol("linear-sgd", "classification", "dinov2", {}, random_weights=False).to_dict()
    assert len(dinov2["base_lr"]) == 13 and (dinov2["optimizer"], dinov2["norm"]) == ("sgd", "none")
    assert dinov2["epochs"] * 1281167 / dinov2["batch_size"] == pytest.approx(12_500, rel=0.01)


def test_the_sweep_ends_where_val_has_not_improved():
    every, some = (fitted(Linear(patience=patience), PixelBench()) for patience in (0, 8))
    tried = len(some.arrays["C"])
    assert tried < len(every.arrays["C"]) == 45
    scores = every.arrays["val_top1"]
    assert tried - 1 - np.argmax(scores[:tried]) >= 8 and some.chosen["C"] == every.chosen["C"]
    np.testing.assert_array_equal(some.arrays["val_top1"], scores[:tried])


# -- hygiene, of every protocol -----------------------------------------------------------------------

SHORT = {
    "finetune": {"epochs": 1, "warmup_epochs": 0.5, "batch_size": 16},
    "linear-sgd": {"epochs": 1, "warmup_epochs": 0.5, "batch_size": 16, "layers": ["auto"]},
    "linear": {"steps": 3, "layers": "auto"},
    "fewshot": {"shots": [1, 2], "draws": 2},
}


class Sealed:
    """Images that may not be looked at yet."""

    def __init__(self, images):
        self.images, self.opened = images, False

    def __len__(self):
        return len(self.images)

    def __getattr__(self, name):
        assert self.opened, f"{name} of a test image before the choice is frozen"
        return getattr(self.images, name)


FITTED = sorted(
    name for (name, kind), cls in PROTOCOLS.items() if kind == "classification" and "val" in cls.roles
)


@pytest.mark.parametrize("name", FITTED)
def test_no_protocol_touches_test_before_its_choice_is_frozen(name, my_task, monkeypatch):
    task = dataclasses.replace(read_task(my_task), recipe={name: SHORT.get(name, {})})
    bench, splits = bench_of(task, protocol=name)
    sealed = Sealed(splits["test"].part.images)
    labels_of_test = splits["test"].part.labels
    parts = {role: split.part for role, split in splits.items()}
    parts["test"] = Part(parts["test"].ids, np.full_like(labels_of_test, -1), sealed)
    splits = {role: Split(role, part) for role, part in parts.items()}
    data = TaskData(splits, ("a", "b", "c"), DataSource(fingerprint="0", layout="layout", root="root"))
    cls, frozen = PROTOCOLS[name, "classification"], []
    real = cls.fit

    def fit(self, bench, train, val):
        done = real(self, bench, train, val)
        frozen.append(dict(done.chosen))
        sealed.opened = True
        parts["test"].labels[:] = labels_of_test
        return done

    monkeypatch.setattr(cls, "fit", fit)
    record, arrays = execute(bench.run, data, bench)
    assert frozen == [record.chosen] and sealed.opened
    assert record.scores["top1"]["n"] == len(arrays["ids"]) == 30
    assert record.counts["test_in_train_or_val"] == 0


def test_images_that_are_in_train_and_test_are_counted(my_task):
    images = my_task.parent / "images"
    for place, path in enumerate(sorted((images / "train" / "digit 1").iterdir())[:3]):
        shutil.copy(path, images / "val" / "digit 1" / f"copy {place}.png")
    data = open_task(read_task(my_task))
    bench, _ = bench_of(read_task(my_task))
    record, _ = execute(bench.run, data, bench)
    assert record.counts["test_in_train_or_val"] == 3
    assert "3 test images also occur in train or val" in record.notes


# -- the table of protocols --------------------------------------------------------------------------


@pytest.mark.parametrize("key", PROTOCOLS, ids="-".join)
def test_every_protocol_describes_itself(key):
    cls = PROTOCOLS[key]
    assert (cls.name, cls.kind) == key
    assert cls.__doc__ and cls.title and cls.version >= 1 and "paper" in cls.presets
    assert isinstance(cls.stochastic, bool)
    for preset in cls.presets:
        values = resolve_protocol(*key, preset, {}, random_weights=False).to_dict()
        again = build_protocol(values, cls.kind)
        assert again == cls(**check_values(cls, cls.presets[preset]))
        assert again.images({"train": 10, "val": 5, "test": 7}).forward > 0


def test_values_are_defaults_then_preset_then_task():
    plain = resolve_protocol("finetune", "classification", "auto", {}, random_weights=False).to_dict()
    untrained = resolve_protocol("finetune", "classification", "auto", {}, random_weights=True).to_dict()
    assert plain["mixup"] == 0.8 and untrained["mixup"] == 0.0
    assert resolve_protocol("finetune", "classification", "paper", {}, random_weights=True).to_dict() == plain
    by_task = resolve_protocol(
        "finetune", "classification", "auto", {"mixup": 0.3, "epochs": 9}, True
    ).to_dict()
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
        (
            "finetune",
            {"crop_scale": (0.9, 0.1)},
            "crop_scale must be two positive numbers in ascending order",
        ),
        ("knn", {"k": ("a",)}, "k must be like"),
        ("knn", {"k": (0, 5)}, "k must be whole numbers of at least 1"),
        ("knn", {"temperature": 0.0}, "temperature must be above 0"),
        ("linear", {"low": 6.0}, "low must not be above high"),
        ("linear-sgd", {"optimizer": "adam"}, "optimizer must be one of lars, sgd"),
        ("linear-sgd", {"base_lr": (0.0,)}, "base_lr must be numbers above 0"),
        ("fewshot", {"shots": (0,)}, "shots must be whole numbers of at least 1"),
        ("fewshot", {"layers": "auto"}, "a few images cannot choose"),
    ],
)
def test_values_out_of_range_are_refused(protocol, values, told):
    with pytest.raises(BenchError, match=told):
        resolve_protocol(protocol, "classification", "paper", values, False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearWithMore(Linear):
    """A protocol to which hyper-parameters were added."""

    added: int = later(3)
    bounds: tuple[float, ...] = later((0.0, 1.0))


def test_a_new_hyper_parameter_leaves_finished_runs_as_they_are():
    assert LinearWithMore().to_dict() == Linear().to_dict()
    changed = LinearWithMore(added=4).to_dict()
    assert changed == {**Linear().to_dict(), "added": 4}
    assert LinearWithMore(bounds=(0.0, 2.0)).to_dict()["bounds"] == [0.0, 2.0]


def test_the_image_size_may_come_from_the_protocol(my_task):
    task = read_task(my_task)
    sized = dataclasses.replace(task, recipe={"finetune": {**task.recipe["finetune"], "image_size": 64}})
    own = bench_of(task, protocol="finetune")[0].run
    larger = bench_of(sized, protocol="finetune")[0].run
    assert own.size == (32, 32) and "image_size" not in own.protocol
    assert larger.size == (64, 64) and larger.run_id != own.run_id
    assert bench_of(sized, protocol="linear")[0].run.size == (32, 32)
    with pytest.raises(BenchError, match="image_size must be at least 0"):
        build_protocol({**own.protocol, "image_size": -1}, "classification")


def test_a_run_is_done_from_its_json_alone(my_task, tmp_path):
    """As another process does it, with the data root of its machine."""
    bench, _ = bench_of(read_task(my_task))
    expected, arrays = execute(bench.run, open_task(read_task(my_task)), bench)
    text = bench.run.to_json()
    assert Run.from_json(text) == bench.run and Run.from_json(text).run_id == bench.run.run_id
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "images", elsewhere)
    roots = DataRoots(of_task={"mine": elsewhere})

    def do(text):
        run = Run.from_json(text)
        data = open_task(run.task, roots)
        return execute(run, data, open_run(run, data, bench.machine, bench.stages))

    record, again = do(text)
    assert record.run_id == expected.run_id and record.scores == expected.scores
    assert record.provenance["root"] == str(elsewhere)
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    sorted(elsewhere.rglob("*.png"))[0].unlink()
    with pytest.raises(BenchError, match="differ from those of the run"):
        do(text)
