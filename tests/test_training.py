"""Fine-tuning: it learns, repeats itself, follows its recipe, and survives the end of memory."""

import csv
import dataclasses
import json
import signal
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from children import Forked
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mixmim_bench.cache import cache_folder
from mixmim_bench.data.batch import Batch, joined
from mixmim_bench.data.dataset import Split, open_task
from mixmim_bench.data.images import join
from mixmim_bench.errors import BenchError
from mixmim_bench.machine import Machine
from mixmim_bench.memory import is_out_of_memory, memory_errors
from mixmim_bench.protocols import build_protocol
from mixmim_bench.protocols.tuning import build_network
from mixmim_bench.protocols.workbench import Shelf, Workbench
from mixmim_bench.specs import RANDOM, ModelSpec, Preprocessing
from mixmim_bench.suite.execute import execute
from mixmim_bench.suite.plan import ModelChoice, TaskChoice, choose_protocol, plan
from mixmim_bench.suite.selection import load_tasks
from mixmim_bench.suite.taskfile import read_task
from mixmim_bench.training import checkpoints, trainer
from mixmim_bench.training import loop as training

TINY = ModelSpec(
    name="tiny",
    arch="mixmim_base",
    kwargs={"embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]},
)
PREPROCESSING = Preprocessing(
    size=(224, 224),
    crop_pct=0.875,
    crop_mode="center",
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


class Quiet:
    """Shows no progress, but counts it."""

    def __init__(self):
        self.counted = {}
        self.said = []

    @contextmanager
    def stage(self, name, total, _work):
        self.counted[name] = [0, total]

        def advance(n):
            self.counted[name][0] += n

        yield advance

    def say(self, text):
        self.said.append(text)


def bench_for(task, seed=0, model=TINY, weights=RANDOM, preprocessing=PREPROCESSING, **machine):
    data = open_task(task)
    run = plan(
        [ModelChoice(spec=model, weights=weights, preprocessing=preprocessing)],
        [
            TaskChoice(
                spec=task,
                data=data.source,
                counts=data.counts,
                protocols=[choose_protocol(task, "finetune", "auto", counts=data.counts)],
            )
        ],
        [seed],
        "float32",
    )[0].run
    machine = Machine(**{"device": "cpu", **machine})
    return Workbench(run, machine, Quiet(), 0.01, Shelf()), data


def digits(**recipe):
    task = load_tasks()["digits"]
    return dataclasses.replace(task, recipe={"finetune": {**task.recipe["finetune"], **recipe}})


def splits_of(data, n=None):
    """The splits, or the first n images of each."""
    return {role: Split(role, part.take(np.arange(len(part))[:n])) for role, part in data.parts.items()}


def trained(seed=0, machine=None, n=None, **recipe):
    bench, data = bench_for(digits(**recipe), seed, **(machine or {}))
    protocol = build_protocol(bench.run.protocol, "classification")
    splits = splits_of(data, n)
    done = protocol.fit(bench, splits["train"], splits["val"])
    return done, done.predict(splits["test"]), bench


def trainer_for(bench, part, at_once=32):
    """A trainer as the protocol of the bench would make it."""
    recipe = build_protocol(bench.run.protocol, "classification")
    network, _ = build_network(bench, recipe)
    objective = recipe._objective(bench)
    transform, schedule = recipe._transform(bench), recipe._schedule(len(part), network)
    return network, training.Trainer(
        network, part, transform, objective, schedule, bench.environment(), at_once
    )


FEW_AND_ALL = pytest.mark.parametrize("n", [100, pytest.param(None, marks=pytest.mark.slow)])


@FEW_AND_ALL
def test_it_learns_and_repeats_itself(n):
    recipe = {"n": n, "epochs": 6, "base_lr": 1e-2}
    done, predicted, bench = trained(**recipe)
    assert (predicted.scores.argmax(1) == predicted.y).mean() > 0.8
    assert done.arrays["train_loss"][-1] < 0.5 * done.arrays["train_loss"][0]
    assert all(count == total for count, total in bench.stages.counted.values())
    again = trained(**recipe)[1]
    assert np.array_equal(predicted.scores, again.scores)
    other = trained(seed=2**31 - 1, **recipe)[1]
    assert not np.array_equal(predicted.scores, other.scores)


def test_a_training_that_learns_nothing_says_so():
    """Train accuracy at chance is one note, a score no better than the most frequent class another."""
    bench, data = bench_for(digits(epochs=1, base_lr=1e-9))
    record, arrays = execute(bench.run, data, bench)
    score = record.scores["top1"]
    assert score["low"] <= score["guess"] == pytest.approx(0.1, abs=0.01)
    assert any("train accuracy" in note and "is not significantly above" in note for note in record.notes)
    assert any("not significantly better than always predicting the most" in note for note in record.notes)
    assert arrays["fit_train_top1"] < 0.2

    bench, data = bench_for(digits(epochs=3, base_lr=1e-2))
    record, arrays = execute(bench.run, data, bench)
    assert record.scores["top1"]["low"] > record.scores["top1"]["guess"]
    assert not any("not significantly" in note for note in record.notes)
    assert arrays["fit_train_top1"] > 0.5


# -- checkpoints --------------------------------------------------------------------------------------


@pytest.fixture
def always(monkeypatch):
    """Write a checkpoint after every step."""
    for name, value in (("FEWEST_S", 0.0), ("EVERY_S", 0.0), ("SHARE", 1e9)):
        monkeypatch.setattr(checkpoints, name, value)


RECIPE = {"epochs": 2, "batch_size": 32, "mixup": 0.8, "cutmix": 1.0, "drop_path": 0.1}


def weights_after(bench, data, n=100):
    """Train and return the weights, the losses and the first image of the epochs."""
    part = join([splits_of(data, n)[role].part for role in ("train", "val")])
    recipe = build_protocol(bench.run.protocol, "classification")
    network, _ = build_network(bench, recipe)
    objective = recipe._objective(bench)
    done = training.train(
        network, part, recipe._transform(bench), objective, recipe._schedule(len(part), network),
        bench.environment(), "training", 0.0,
    )  # fmt: skip
    return network.state_dict(), done


def stopping_at(monkeypatch, update, how):
    """Let the first training that reaches an update be stopped there."""
    real = training.Trainer._step

    def step(self, batch, at):
        if at == update:
            monkeypatch.setattr(training.Trainer, "_step", real)
            how()
        return real(self, batch, at)

    monkeypatch.setattr(training.Trainer, "_step", step)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("update", [1, 5, 6, 11])
def test_an_interrupted_training_ends_with_the_same_weights(monkeypatch, update):
    bench, data = bench_for(digits(**RECIPE))
    whole, expected = weights_after(bench, data)
    bench.finish()
    stopping_at(monkeypatch, update, interrupt)
    with pytest.raises(KeyboardInterrupt):
        weights_after(bench, data)
    weights, done = weights_after(bench, data)
    assert bench.stages.counted["training"] == [2 * 6 * 32, 2 * 6 * 32]
    assert all(torch.equal(weights[name], whole[name]) for name in whole)
    assert done.losses == expected.losses
    assert np.array_equal(done.digests, expected.digests)


@pytest.mark.usefixtures("always")
def test_sigterm_writes_a_checkpoint_and_exits(monkeypatch):
    bench, data = bench_for(digits(**RECIPE))
    whole, _ = weights_after(bench, data)
    bench.finish()
    monkeypatch.setattr(checkpoints, "EVERY_S", 1e9)
    monkeypatch.setattr(checkpoints, "FEWEST_S", 1e9)
    stopping_at(monkeypatch, 8, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        weights_after(bench, data)
    assert stopped.value.code == 143
    steps = []
    real = training.Trainer._step
    monkeypatch.setattr(training.Trainer, "_step", lambda *a: (steps.append(a[2]), real(*a))[1])
    weights, _ = weights_after(bench, data)
    assert steps[0] == 9
    assert all(torch.equal(weights[name], whole[name]) for name in whole)


@pytest.mark.usefixtures("always")
def test_memory_that_ends_later_costs_no_finished_step(monkeypatch):
    """Training goes on from the last checkpoint with half as many images; a given number is used then too."""
    bench, data = bench_for(digits(**RECIPE))
    steps = []
    real = training.Trainer._step

    def noting(self, batch, update):
        steps.append((update, self.at_once))
        return real(self, batch, update)

    monkeypatch.setattr(training.Trainer, "_step", noting)
    stopping_at(monkeypatch, 8, out_of_memory)
    _, done = weights_after(bench, data)
    assert steps[7:10] == [(7, 32), (8, 16), (9, 16)] and steps[-1] == (11, 16)
    assert done.notes == ("training: out of memory at batch size 32, used 16",)

    bench.finish()
    monkeypatch.setattr(training.Trainer, "_step", real)
    stopping_at(monkeypatch, 8, interrupt)
    with pytest.raises(KeyboardInterrupt):
        weights_after(bench, data)
    smaller, _ = bench_for(digits(**RECIPE), given_batch_size=8)
    steps.clear()
    monkeypatch.setattr(training.Trainer, "_step", noting)
    weights_after(smaller, data)
    assert steps[0] == (8, 8)


def out_of_memory(*_):
    raise MemoryError


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("change", ["damaged", "seed", "recipe"])
def test_a_checkpoint_of_another_training_is_not_read(monkeypatch, run, change):
    bench, data = bench_for(digits(**RECIPE))
    stopping_at(monkeypatch, 8, interrupt)
    with pytest.raises(KeyboardInterrupt):
        weights_after(bench, data)
    (file,) = (cache_folder() / "training").glob("*/*.pt")
    assert "(training)" in run("cache", "ls").output
    assert "0 removed" in run("cache", "prune").output
    if change == "damaged":
        file.write_bytes(file.read_bytes()[:-100])
    recipe = {**RECIPE, "epochs": 4} if change == "recipe" else RECIPE
    other, _ = bench_for(digits(**recipe), seed=int(change == "seed"))
    steps = []
    real = training.Trainer._step
    monkeypatch.setattr(training.Trainer, "_step", lambda *a: (steps.append(a[2]), real(*a))[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        weights_after(other, data)
    assert steps[0] == 0
    assert any("is damaged" in str(warning.message) for warning in caught) == (change == "damaged")


def test_a_checkpoint_that_is_not_used_is_named(tmp_path):
    about = {"name": "training", "processes": 8, "torch": "2.14.1"}
    checkpoints.Checkpoint(tmp_path / "a.pt", about).save({})
    checkpoints.Checkpoint(tmp_path / "b.pt", {**about, "name": "another"}).save({})
    (tmp_path / "c.pt").write_bytes(b"damaged")
    now = checkpoints.Checkpoint(tmp_path / "d.pt", {**about, "processes": 4})
    with pytest.warns(
        UserWarning, match=r"a\.pt has other processes: training starts from the beginning"
    ) as said:
        now.warn_of_others()
    assert len(said) == 1


@pytest.mark.usefixtures("always")
def test_a_full_disk_ends_no_training(monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    bench, data = bench_for(digits(**{**RECIPE, "epochs": 1}))
    with pytest.warns(UserWarning, match="no checkpoint could be written to .*No space left"):
        _, done = weights_after(bench, data)
    assert len(done.losses) == 1
    assert not list((cache_folder() / "training").glob("*/*"))


@FEW_AND_ALL
def test_workers_change_nothing(n):
    recipe = {"n": n, "epochs": 1, "auto_augment": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0}
    one = trained(**recipe)[1]
    two = trained(machine={"workers": 2}, **recipe)[1]
    assert np.array_equal(one.scores, two.scores)


@pytest.mark.parametrize("workers", [0, 2])
def test_large_batches_are_loaded_in_pieces(monkeypatch, workers):
    """The same weights, losses and digests, bit for bit."""
    bench, data = bench_for(digits(**RECIPE), workers=workers)
    whole, expected = weights_after(bench, data)
    monkeypatch.setattr(trainer, "LOADED_AT_ONCE", 5)
    weights, done = weights_after(bench, data)
    assert all(torch.equal(weights[name], whole[name]) for name in whole)
    assert done.losses == expected.losses and np.array_equal(done.digests, expected.digests)


def test_batches_are_joined():
    some = torch.arange(3), torch.rand(3, 3, 4, 4), torch.rand(3, 16)
    none = Batch(torch.empty(0, dtype=torch.int64), torch.empty(0), None, torch.empty(0), {7: "broken"})
    for targets, expected in ((torch.arange(3), torch.tensor([0, 1, 2] * 2)), ([1, 2, 3], [1, 2, 3] * 2)):
        part = Batch(some[0], some[1], targets, some[2], {})
        both = joined([part, none, part])
        assert both.rows.tolist() == [0, 1, 2] * 2 and both.images.shape == (6, 3, 4, 4)
        assert both.digests.shape == (6, 16) and both.failures == {7: "broken"}
        assert (
            torch.equal(both.targets, expected)
            if isinstance(targets, torch.Tensor)
            else both.targets == expected
        )
    assert len(joined([none, none]).rows) == 0


@pytest.mark.parametrize("recipe", [{}, {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1}])
def test_accumulated_halves_are_the_whole_batch(recipe):
    """What happens when memory runs out must not change the recipe: same mixing, gradients and steps."""
    losses, weights = [], []
    for at_once in (32, 16):
        bench, data = bench_for(digits(**recipe))
        network, trainer = trainer_for(bench, data.parts["val"], at_once)
        losses.append(trainer.run("training", 0.1))
        weights.append(torch.cat([p.flatten() for p in network.parameters()]))
    np.testing.assert_allclose(*losses, rtol=1e-4)
    torch.testing.assert_close(*weights, atol=2e-4, rtol=1e-3)


@FEW_AND_ALL
def test_memory_that_ends_in_the_backward_pass_leaves_nothing_behind(monkeypatch, n):
    """The second attempt must be the run that would have been started with the smaller number."""
    expected = trained(n=n, epochs=1)[1].scores
    real, calls = training.Trainer._loss, []

    def failing_once(trainer, images, target):
        loss = real(trainer, images, target)
        calls.append(trainer.at_once)
        if len(calls) == 3:
            loss.backward()  # gradients are there when the allocation fails
            raise MemoryError
        return loss

    monkeypatch.setattr(training.Trainer, "_loss", failing_once)
    _, predicted, bench = trained(n=n, epochs=1)
    assert calls[:4] == [32, 32, 32, 16]
    assert bench.notes == ["fine-tuning: out of memory at batch size 32, used 16"]
    np.testing.assert_allclose(predicted.scores, expected, atol=0.02)


def test_the_schedule_warms_up_falls_and_keeps_layer_decay():
    bench, data = bench_for(digits(layer_decay=0.5, base_lr=1.0, epochs=4, warmup_epochs=1.0, min_lr=0.0))
    _, trainer = trainer_for(bench, join([data.parts["train"], data.parts["val"]]))
    steps = trainer.steps_per_epoch
    rates = []
    for update in range(4 * steps):
        trainer.scheduler.step_update(update)
        groups = trainer.optimizer.param_groups
        rates.append([g["lr"] / g["lr_scale"] for g in groups])
        assert max(rates[-1]) == pytest.approx(min(rates[-1]))
    full = 1.0 * 32 / 256
    path = np.array(rates)[:, 0]
    expected = [full * i / steps for i in range(steps)]
    expected += [full * (1 + np.cos(np.pi * i / (3 * steps))) / 2 for i in range(3 * steps)]
    np.testing.assert_allclose(path, expected, atol=1e-9)
    scales = {g["lr_scale"] for g in groups}
    assert {1.0, 0.5} <= scales and min(scales) == 0.5**6


@pytest.mark.parametrize(("forbid", "chance"), [((), [1.0]), (("hflip",), [])])
def test_a_task_forbids_what_would_change_its_labels(forbid, chance):
    bench, data = bench_for(dataclasses.replace(digits(hflip=1.0), forbid=forbid))
    _, trainer = trainer_for(bench, data.parts["val"])
    kept = [t for t in trainer.dataset.transform.transform.transforms if "Flip" in type(t).__name__]
    assert [t.p for t in kept] == chance


def test_a_training_that_diverges_says_so_and_keeps_the_ids(tmp_path):
    bench, data = bench_for(digits(epochs=2, base_lr=1e30))
    bench.logs = tmp_path
    with pytest.raises(BenchError, match=r"diverged: the loss is nan at step .* 32 images are listed in "):
        weights_after(bench, data)
    values = json.loads((tmp_path / "training.diverged.json").read_text())
    part = join([splits_of(data, 100)[role].part for role in ("train", "val")])
    assert len(values["ids"]) == 32 and set(values["ids"]) <= set(part.ids.tolist())
    assert values["loss"] == "nan" and values["step"] > 0 and values["lr"] > 0
    rows = (tmp_path / "training.csv").read_text().splitlines()
    assert len(rows) == 1 + values["step"]


# -- logs ---------------------------------------------------------------------------------------------


def test_losses_and_rates_are_logged_and_cut_where_a_training_continues(monkeypatch, tmp_path):
    for name, value in (("FEWEST_S", 0.0), ("EVERY_S", 0.0), ("SHARE", 1e9)):
        monkeypatch.setattr(checkpoints, name, value)
    monkeypatch.setattr(checkpoints, "EVERY_S", 1e9)  # at the ends of epochs only
    bench, data = bench_for(digits(**RECIPE, base_lr=0.1, warmup_epochs=0.0, min_lr=0.0))
    bench.logs, bench.trackers = tmp_path, ("tensorboard",)
    stopping_at(monkeypatch, 8, interrupt)
    with pytest.raises(KeyboardInterrupt):
        weights_after(bench, data)
    assert len((tmp_path / "training.csv").read_text().splitlines()) == 1 + 8
    _, done = weights_after(bench, data)
    rows = list(csv.DictReader((tmp_path / "training.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(12))
    losses = [float(row["loss"]) for row in rows]
    assert [np.mean(losses[:6]), np.mean(losses[6:])] == pytest.approx(done.losses, abs=1e-5)
    full = 0.1 * 32 / 256
    expected = [full * (1 + np.cos(np.pi * i / 12)) / 2 for i in range(12)]
    assert [float(row["lr"]) for row in rows] == pytest.approx(expected, rel=1e-5)
    assert all(float(row["images_per_s"]) > 0 for row in rows)
    assert json.loads((tmp_path / "training.json").read_text())["batch_size"] == 32
    events = EventAccumulator(str(tmp_path / "training")).Reload()
    scalars = events.Scalars("loss")
    assert [each.step for each in scalars] == list(range(12))
    assert [each.value for each in scalars] == pytest.approx(losses, rel=1e-5)


def test_a_tracker_that_is_not_there_is_named(run, tmp_path):
    args = ["-m", "test_vit", "-t", "digits", "-p", "knn", "--results", tmp_path]
    assert "no tracker 'wand'; did you mean wandb or" in run("run", *args, "--track", "wand", code=2).output
    said = run("run", *args, "--track", "clearml", code=2).output
    assert "the tracker 'clearml' needs its package: pip install clearml" in said


# -- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [{}, {"mixup": 0.8, "cutmix": 1.0}])
def test_a_batch_larger_than_the_dataset_is_the_dataset(recipe):
    """Also an odd one, whose last image is not mixed."""
    bench, data = bench_for(digits(batch_size=4096, epochs=3, **recipe))
    part = data.parts["val"].take(np.arange(31))
    _, trainer = trainer_for(bench, part, at_once=4096)
    assert (trainer.batch_size, trainer.steps_per_epoch) == (31, 1)
    assert len(trainer.run("training", 0.0)) == 3
    assert bench.stages.counted["training"] == [93, 93]


@pytest.mark.parametrize("head_init", ["random", "linear"])
def test_classes_of_one_image_and_classes_missing_in_train_are_trained(head_init):
    """What train lacks can be neither learnt nor an error; the network still has its class."""
    bench, data = bench_for(digits(epochs=2, head_init=head_init))
    splits = splits_of(data, 150)
    for role in ("train", "val"):
        labels = splits[role].part.labels
        keep = (labels != 3) & (labels != 7)
        if role == "train":
            keep[np.flatnonzero(labels == 7)[0]] = True
        splits[role] = Split(role, splits[role].part.take(np.flatnonzero(keep)))
    protocol = build_protocol(bench.run.protocol, "classification")
    predicted = protocol.fit(bench, splits["train"], splits["val"]).predict(splits["test"])
    assert np.isfinite(predicted.scores).all() and predicted.scores.shape == (150, 10)
    if head_init == "linear":
        assert not (predicted.scores.argmax(1) == 3).any()


def test_memory_options_change_nothing_but_memory():
    """Recomputed activations and compiled networks give the same losses, to rounding."""
    expected = trained(n=100, epochs=1, drop_path=0.0)[0].arrays["train_loss"]
    again = trained(n=100, epochs=1, drop_path=0.0, machine={"grad_checkpointing": True})[0]
    np.testing.assert_allclose(again.arrays["train_loss"], expected, rtol=1e-5)
    vgg = ModelSpec(name="vgg", arch="vgg11")
    bench, data = bench_for(digits(epochs=1), model=vgg, grad_checkpointing=True)
    with pytest.raises(BenchError, match="--grad-checkpointing: VGG does not support it"):
        build_protocol(bench.run.protocol, "classification").fit(
            bench, *list(splits_of(data, 64).values())[:2]
        )


@pytest.mark.slow
def test_a_compiled_training_has_the_same_losses():
    expected = trained(n=100, epochs=1, drop_path=0.0)[0].arrays["train_loss"]
    compiled = trained(n=100, epochs=1, drop_path=0.0, machine={"compile_training": True})[0]
    np.testing.assert_allclose(compiled.arrays["train_loss"], expected, rtol=1e-4)


def test_an_architecture_without_stochastic_depth_is_trained_without_it():
    resnet = ModelSpec(name="resnet", arch="test_resnet")
    vgg = ModelSpec(name="vgg", arch="vgg11")
    for model, notes in ((resnet, ()), (vgg, ("drop_path 0.5 ignored: vgg does not support it",))):
        bench, _ = bench_for(digits(drop_path=0.5), model=model)
        recipe = build_protocol(bench.run.protocol, "classification")
        assert build_network(bench, recipe)[1] == notes


def test_skipped_training_images_are_counted(my_task, tmp_path):
    broken = sorted((tmp_path / "images" / "train").rglob("*.png"))[::12]
    for image in broken:
        image.write_bytes(b"")
    text = my_task.read_text().replace("[data]", "[data]\nskip_unreadable = true")
    my_task.write_text(text.replace("epochs = 2", "epochs = 3"))
    bench, data = bench_for(read_task(my_task))
    protocol, splits = build_protocol(bench.run.protocol, "classification"), splits_of(data)
    protocol.fit(bench, splits["train"], splits["val"]).predict(splits["test"])
    expected = {
        role: sum(str(path).endswith(tuple(splits[role].part.ids)) for path in broken)
        for role in ("train", "val", "test")
    }
    assert sum(expected.values()) == len(broken) == 5
    assert bench.skipped == expected


def limit_memory(left_bytes):
    """Let this process take no more than some bytes."""
    import resource

    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + left_bytes, resource.RLIM_INFINITY))


def allocate_too_much():
    limit_memory(300_000_000)
    with memory_errors(Machine(device="cpu")):
        try:
            torch.zeros(100_000_000)
        except Exception as error:
            print("RAN OUT", is_out_of_memory(error))


def train_with_little_memory():
    task = dataclasses.replace(digits(batch_size=256, epochs=1), image_size=160)
    bench, data = bench_for(task, batch_size=256)
    protocol = build_protocol(bench.run.protocol, "classification")
    splits = splits_of(data, 256)
    limit_memory(1_500_000_000)
    with memory_errors(bench.machine):
        done = protocol.fit(bench, splits["train"], splits["val"])
        done.predict(splits["test"])
    print("NOTES", bench.notes)


ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the limit on data is Linux's")


@ON_LINUX
def test_the_end_of_memory_is_an_error_that_is_known(tmp_path):
    log = tmp_path / "log"
    assert Forked(allocate_too_much, log=log).wait() == 0, log.read_text()
    assert "RAN OUT True" in log.read_text()


@pytest.mark.slow
@ON_LINUX
def test_the_batch_is_halved_when_memory_runs_out(tmp_path):
    """A real limit on the memory of a child process; the record says what was done."""
    log = tmp_path / "log"
    assert Forked(train_with_little_memory, log=log).wait() == 0, log.read_text()
    assert "fine-tuning: out of memory at batch size 256, used" in log.read_text()


def test_pixels_of_digits_are_what_the_network_sees():
    bench, data = bench_for(digits())
    image = bench.transform()(data.parts["test"].images.load(0))
    assert image.shape == (3, 32, 32)
    row = int(data.parts["test"].ids[0].split("_")[1])
    small = torch.nn.functional.interpolate(image[None], size=(8, 8), mode="area")[0, 0] * 0.5 + 0.5
    original = torch.from_numpy(load_digits().images[row] / 16).float()
    assert torch.corrcoef(torch.stack([small.flatten(), original.flatten()]))[0, 1] > 0.97


@given(st.integers(1, 300), st.integers(1, 64), st.sampled_from([1, 2]))
def test_pieces_are_the_whole_batch_and_leave_no_single_image(images, at_once, fewest):
    at_once = max(at_once, fewest)
    cut = list(trainer.pieces(images, at_once, fewest))
    assert [row for piece in cut for row in range(images)[piece]] == list(range(images))
    sizes = [piece.stop - piece.start for piece in cut]
    assert max(sizes) <= at_once + (at_once == 2)
    assert min(sizes) >= min(fewest, images)


@pytest.mark.parametrize(("arch", "fewest"), [("test_resnet", 2), ("test_vit", 1)])
def test_the_end_of_memory_with_batch_norm_is_named(monkeypatch, arch, fewest):
    tried = []

    def out_of_memory(_trainer, images, _target):
        tried.append(len(images))
        raise MemoryError

    monkeypatch.setattr(training.Trainer, "_loss", out_of_memory)
    model = ModelSpec(name=arch, arch=arch)
    bench, data = bench_for(digits(epochs=1, warmup_epochs=0.0, batch_size=8), model=model)
    recipe = build_protocol(bench.run.protocol, "classification")
    with pytest.raises(
        BenchError, match=r"out of memory with (one image|the fewest images that are possible)"
    ):
        recipe.fit(bench, Split("train", data.parts["train"]), Split("val", data.parts["val"]))
    assert tried == [8, 4, 2, 1][: 4 - (fewest == 2)]


def test_batch_norm_in_pieces_is_on_record(monkeypatch):
    real, calls = training.Trainer._loss, []

    def failing_once(trainer, images, target):
        calls.append(len(images))
        if len(calls) == 1:
            raise MemoryError
        return real(trainer, images, target)

    monkeypatch.setattr(training.Trainer, "_loss", failing_once)
    model = ModelSpec(name="test_resnet", arch="test_resnet")
    bench, data = bench_for(digits(epochs=1, warmup_epochs=0.0, batch_size=32), model=model)
    recipe = build_protocol(bench.run.protocol, "classification")
    recipe.fit(bench, Split("train", data.parts["train"]), Split("val", data.parts["val"]))
    assert "fine-tuning: batch-norm statistics are those of 16 images instead of 32" in bench.notes
