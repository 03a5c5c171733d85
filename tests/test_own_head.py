"""`own-head`: the classifier that weights come with, on test images alone."""

import dataclasses
import json
import shutil

import copies
import numpy as np
import pytest
import timm
import torch
from test_layouts import IMAGENET
from timm.data import RealLabelsImagenet, create_transform, resolve_data_config

from mixmim_bench import registry
from mixmim_bench.data.dataset import open_task
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import BenchError
from mixmim_bench.protocols.outputs import outputs_of
from mixmim_bench.scoring.calibration import BINS, calibration_error, confidences, score_calibration
from mixmim_bench.scoring.metrics import value
from mixmim_bench.scoring.predictions import ClassScores
from mixmim_bench.specs import ModelSpec, WeightsSpec
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.selection import load_tasks, task_folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Checkpoints of a small network with classifiers of 1,000, 7, and no classes."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for classes in (1000, 7, 0):
        torch.save(timm.create_model("test_vit", num_classes=classes).state_dict(), folder / f"{classes}.pth")
    return folder


def without_counts(name, folder):
    """A copy of a task file of ImageNet, for fewer images than there are."""
    for each in {name, "imagenet1k"}:
        text = (task_folder() / f"{each}.toml").read_text()
        text = "\n".join(line for line in text.splitlines() if not line.startswith("counts"))
        (folder / f"my-{each}.toml").write_text(
            text.replace('same_as = "imagenet1k"', 'same_as = "my-imagenet1k"')
        )
    return folder / f"my-{name}.toml"


def logits_by_timm(path, part):
    """Evaluate as timm's own loop: its transform, its network, image by image."""
    network = timm.create_model("test_vit", num_classes=1000).eval()
    network.load_state_dict(torch.load(path))
    transform = create_transform(**resolve_data_config({}, model=network), is_training=False)
    images = torch.stack([transform(part.images.load(row)) for row in range(len(part))])
    with torch.no_grad():
        return network(images).numpy()


@pytest.fixture(scope="module")
def val_only(tmp_path_factory):
    """ImageNet in every layout, on a machine that has val alone."""
    folder = tmp_path_factory.mktemp("val")
    for name, make in IMAGENET.items():
        make(folder / name)
        for train in (*(folder / name).glob("**/train*"), *(folder / name).glob("*_img_train.tar")):
            shutil.rmtree(train) if train.is_dir() else train.unlink(missing_ok=True)
        for shard in (folder / name).glob("*-train-*"):
            shard.unlink()
    return folder


@pytest.mark.parametrize("layout", IMAGENET)
def test_val_alone_is_enough_in_every_layout(val_only, layout):
    task = dataclasses.replace(load_tasks()["imagenet1k"], counts={})
    with pytest.raises(BenchError, match="train"):
        open_task(task, DataRoots(of_task={"imagenet1k": val_only / layout}))
    data = open_task(task.for_roles(["test"]), DataRoots(of_task={"imagenet1k": val_only / layout}))
    assert data.counts == {"test": 1000}
    expected = {stem: synset for synset, stem, _ in copies.imagenet()["val"]}
    part = data.parts["test"]
    assert [data.classes[label] for label in part.labels] == [expected[image] for image in part.ids.tolist()]


def test_it_predicts_what_timm_predicts(run, tmp_path, weights, val_only):
    task, results = without_counts("imagenet1k", tmp_path), tmp_path / "results"
    args = ["-m", f"test_vit={weights / '1000.pth'}", "-t", task, "-p", "own-head", "--results", results]
    run("run", *args, "--report", "--data-root", f"my-imagenet1k={val_only / 'folders'}")
    (record,) = RunStore(results).records()
    arrays = RunStore(results).arrays(record.run_id)
    spec = dataclasses.replace(load_tasks()["imagenet1k"], counts={}).for_roles(["test"])
    part = open_task(spec, DataRoots(of_task={"imagenet1k": val_only / "folders"})).parts["test"]
    logits = logits_by_timm(weights / "1000.pth", part)
    assert arrays["ids"].tolist() == part.ids.tolist()
    ordered = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    assert (arrays["best"] == ordered).mean() > 0.999  # but for ties by rounding
    assert record.scores["top5"]["value"] == pytest.approx(
        (ordered == part.labels[:, None]).any(1).mean(), abs=2e-3
    )
    probability = torch.softmax(torch.from_numpy(logits), 1).max(1).values.numpy()
    assert arrays["confidence"] == pytest.approx(probability, abs=1e-5)
    assert record.scores["ece"]["value"] == pytest.approx(
        naive_error(probability, ordered[:, 0] == part.labels), abs=1e-5
    )
    assert record.chosen == {"classes": 1000}
    assert record.identity["task"]["split"] == {"test": "val"}
    assert record.counts["n_test"] == 1000
    assert "n_train" not in record.counts
    table = (results / "leaderboard.md").read_text()
    assert "own-head ece" in table
    again = run("run", *args, "--data-root", f"my-imagenet1k={val_only / 'folders'}").output
    assert "1 of 1 run finished already" in again


def test_real_labels_are_scored_as_timm_does(run, tmp_path, weights, val_only):
    task, results = without_counts("imagenet-real", tmp_path), tmp_path / "results"
    run(
        "run", "-m", f"test_vit={weights / '1000.pth'}", "-t", task, "-p", "own-head", "--results", results,
        "--data-root", f"my-imagenet1k={val_only / 'unpacked'}",
    )  # fmt: skip
    (record,) = RunStore(results).records()
    spec = dataclasses.replace(load_tasks()["imagenet1k"], counts={}).for_roles(["test"])
    part = open_task(spec, DataRoots(of_task={"imagenet1k": val_only / "folders"})).parts["test"]
    names = [f"{image}.JPEG" for image in part.ids.tolist()]
    real = RealLabelsImagenet(names + names[:1] * (50_000 - len(names)))  # it wants all, and looks at these
    real.add_result(torch.from_numpy(logits_by_timm(weights / "1000.pth", part)))
    assert record.counts["n_test"] == len(real.is_correct[1]) < 1000
    for k, metric in ((1, "top1"), (5, "top5")):
        assert 100 * record.scores[metric]["value"] == pytest.approx(real.get_accuracy(k), abs=0.25)
    # what was kept restores the same values
    kept = ClassScores.restore("top5", RunStore(results).arrays(record.run_id))
    assert kept.draws[0][0].mean() == record.scores["top5"]["value"]


@pytest.mark.parametrize("inner", [".", "imagenet-a"])
def test_of_the_outputs_those_of_the_classes_are_compared(run, tmp_path, weights, inner):
    some = [line for line in classes_of("imagenet-a") if line in copies.synsets()]
    assert len(some) == 200
    root, pictures = tmp_path / "data" / inner, copies.jpegs()
    for place, synset in enumerate(some):
        copies.write(root / synset / f"{place}.jpg", pictures[place])
    task, results = without_counts("imagenet-a", tmp_path), tmp_path / "results"
    run(
        "run", "-m", f"test_vit={weights / '1000.pth'}", "-t", task, "-p", "own-head", "--results", results,
        "--data-root", f"my-imagenet-a={tmp_path / 'data'}",
    )  # fmt: skip
    (record,) = RunStore(results).records()
    spec = dataclasses.replace(load_tasks()["imagenet-a"], counts={})
    part = open_task(spec, DataRoots(of_task={"imagenet-a": tmp_path / "data"})).parts["test"]
    columns = [copies.synsets().index(synset) for synset in some]
    best = logits_by_timm(weights / "1000.pth", part)[:, columns].argmax(1)
    assert (RunStore(results).arrays(record.run_id)["best"][:, 0] == best).mean() > 0.99
    assert "only 200 of the classifier's 1,000 outputs are compared" in record.notes


MINE = """schema = 1
version = 1
kind = "classification"
title = "x"
num_classes = 3
metrics = ["top1"]
classifier = "imagenet"
[data]
root = "."
layouts = ["csvlist:CSVList"]
options = { files = { test = "t.csv" } }
[split]
test = "test"
"""


def test_which_outputs_are_compared_is_part_of_a_run(run, tmp_path, weights):
    """A class whose synset is corrected in a list is another output of the classifier."""
    for place in range(3):
        copies.write(tmp_path / "images" / f"{place}.jpg", copies.jpegs()[place])
    (tmp_path / "mine.toml").write_text(MINE)
    args = ("-t", tmp_path / "mine.toml", "-m", f"test_vit={weights / '1000.pth'}", "-p", "own-head")
    for synsets in (copies.synsets()[:3], (*copies.synsets()[:2], copies.synsets()[200])):
        rows = [f"images/{place}.jpg,{synset}" for place, synset in enumerate(synsets)]
        (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
        run("run", *args, "--results", tmp_path / "r")
    assert len(RunStore(tmp_path / "r").records()) == 2


def classes_of(name):
    from mixmim_bench.data.classes import Classes

    return Classes.of_option(name).names


def test_folders_named_by_numbers_are_in_the_standard_order(tmp_path):
    for number in range(1000):
        copies.write(tmp_path / str(number) / "x.jpeg", copies.jpegs()[number])
    task = dataclasses.replace(load_tasks()["imagenet-v2"], counts={})
    data = open_task(task, DataRoots(of_task={"imagenet-v2": tmp_path}))
    part = data.parts["test"]
    assert data.classes == copies.synsets()
    assert {f"{label}/x": int(label) for label in part.labels} == dict(
        zip(part.ids.tolist(), part.labels.tolist(), strict=True)
    )


def test_outputs_are_found_by_synset():
    task = load_tasks()["imagenet1k"]
    from timm.data import ImageNetInfo

    names = ImageNetInfo("imagenet-12k").label_names()
    classes = [names[700], names[3], names[11000]]
    assert outputs_of(task, classes, len(names)).tolist() == [700, 3, 11000]
    with pytest.raises(BenchError, match="has 10 classes, and digits has 3"):
        outputs_of(load_tasks()["digits"], ["a", "b", "c"], 10)


@pytest.mark.parametrize(
    ("model", "args", "said"),
    [
        ("test_vit={w}/0.pth", (), "0.pth (.*) has no classifier, which own-head scores"),
        ("test_vit={w}/7.pth", (), "its classifier has 7 classes, and my-imagenet1k has 1000"),
        ("test_vit=random", (), "random weights have no trained classifier"),
        ("test_vit={w}/1000.pth", ("-p", "linear"), "the test images alone are here, which `-p own-head`"),
    ],
)
def test_what_it_cannot_do_is_said_before_any_work(run, tmp_path, weights, val_only, model, args, said):
    task = without_counts("imagenet1k", tmp_path)
    output = run(
        "run", "-m", model.format(w=weights), "-t", task, *(args or ("-p", "own-head")),
        "--data-root", f"my-imagenet1k={val_only / 'folders'}", "--results", tmp_path / "results", code=2,
    ).output  # fmt: skip
    import re

    assert re.search(said, output)
    assert not list((tmp_path / "results").glob("runs/*.json"))


def test_a_task_of_test_images_takes_no_other_protocol(run, tmp_path):
    output = run("run", "-t", "imagenet-a", "-m", "test_vit", "--results", tmp_path, code=2).output
    assert "imagenet-a has test images only" in output
    assert "-p own-head evaluates" in output


def test_it_takes_fine_tuned_weights_and_probes_take_pretrained_ones(run, tmp_path, monkeypatch, my_task):
    """A model with both kinds of published weights, each for what it is for."""
    from mixmim_bench.registry import weights_folder

    torch.manual_seed(1)
    for name, classes in (("pre", 0), ("ft", 3)):
        copies.write(weights_folder() / f"{name}.pth", b"")
        state = timm.create_model("test_vit", num_classes=classes).state_dict()
        torch.save(state, weights_folder() / f"{name}.pth")
    spec = ModelSpec(
        name="mine",
        arch="test_vit",
        weights=(
            WeightsSpec(name="pre", file="pre.pth"),
            WeightsSpec(name="ft", file="ft.pth", finetuned=True),
        ),
    )
    monkeypatch.setattr(registry, "MODELS", (spec,))
    results = tmp_path / "results"
    args = ["run", "-m", "mine", "-t", my_task, "--results", results, "--json"]
    output = run(*args, "-p", "linear", "-p", "own-head").stdout
    records = [json.loads(line) for line in output.splitlines()]
    assert {(each["identity"]["protocol"]["name"], each["weights"]) for each in records} == {
        ("linear", "pre"),
        ("own-head", "ft"),
    }
    assert "the classifier's outputs are taken to be the classes of the task" in str(records)
    (weights_folder() / "ft.pth").unlink()
    said = run(*args, "-p", "linear", "-p", "own-head").stderr
    assert "no fine-tuned weights on this machine" in said
    assert "own-head is skipped" in said


# -- calibration ------------------------------------------------------------------------------------


def naive_error(confidence, hits):
    total = 0.0
    for low in range(BINS):
        inside = [i for i, c in enumerate(confidence) if min(int(c * BINS), BINS - 1) == low]
        if inside:
            total += abs(sum(confidence[i] for i in inside) - sum(bool(hits[i]) for i in inside))
    return total / len(hits)


def test_calibration_error_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    confidence = np.append(rng.random(500), [1.0, 0.0])
    hits = rng.random(502) < confidence**2
    assert calibration_error(confidence, hits) == pytest.approx(naive_error(confidence, hits))
    assert calibration_error(np.ones(10), np.arange(10) < 4) == pytest.approx(0.6)


def test_confidences_are_softmax_also_of_large_logits():
    logits = np.array([[1000.0, 999.0], [0.0, 0.0], [-5.0, 5.0]], dtype=np.float32)
    expected = torch.softmax(torch.from_numpy(logits).double(), 1).max(1).values.numpy()
    assert confidences(logits) == pytest.approx(expected)


def test_intervals_of_the_calibration_error_cover_it():
    rng = np.random.default_rng(1)
    confidence_of_all = rng.random(200_000)
    truth = calibration_error(confidence_of_all, confidence_of_all**2)  # with rates in the place of hits
    covered = 0
    for _ in range(60):
        confidence = rng.random(400)
        score = score_calibration(confidence, rng.random(400) < confidence**2)
        covered += score["low"] <= truth <= score["high"]
    assert covered >= 52


def test_top_k_of_one_label_and_of_a_set_agree():
    rng = np.random.default_rng(0)
    scores = np.round(rng.random((200, 9)), 1)  # with ties
    y = rng.integers(0, 9, 200)
    vectors = np.eye(9, dtype=np.int8)[y]
    for metric in ("top1", "top5"):
        assert value(metric, y, scores) == value(metric, vectors, scores)
