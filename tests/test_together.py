"""Features of one dataset extracted by several processes of a job: the same bytes, whatever is killed."""

import contextlib
import math
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from children import launch, start
from conftest import write_digits
from hypothesis import given
from hypothesis import strategies as st

from mixmim_bench.features.store import CHUNK_ROWS, FeatureStore
from mixmim_bench.features.together import UNITS, units_of
from mixmim_bench.suite.records import RunStore

ROOT = Path(__file__).parent.parent

# An image folder that is slow, and notes which process has loaded which image of train.
LAYOUT = """\
import os, time
from pathlib import Path

from mixmim_bench.data.images import Part
from mixmim_bench.data.layouts.folder import ImageFolder

LOG = Path(__file__).parent / "loads"


class Noting:
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getattr__(self, name):
        if name.startswith("__") or name == "images":
            raise AttributeError(name)
        return getattr(self.images, name)

    def load(self, row):
        time.sleep(0.003)
        with LOG.open("a") as file:
            file.write(f"{os.environ.get('RANK', '0')} {row}\\n")
        return self.images.load(row)


class Own(ImageFolder):
    def part(self, name):
        part = super().part(name)
        return Part(part.ids, part.targets, Noting(part.images)) if name == "train" else part
"""
TASK = """\
schema = 1
version = 1
kind = "classification"
title = "Many"
num_classes = 10
metrics = ["top1"]
[data]
layouts = ["noting:Own"]
root = "images"
[image]
size = 32
[split]
train = "train[:95%]"
val = "train[95%:]"
test = "val"
"""
TRAIN, VAL = 1564, 86  # images, of 10 x 165


@given(images=st.integers(1, 40_000), batch=st.integers(1, 700), count=st.integers(1, 9))
def test_units_are_whole_chunks_and_batches(images, batch, count):
    units = units_of(images, batch, count)
    assert [row for unit in units for row in (unit.start, unit.stop)][1:-1] == [
        row for unit in units[1:] for row in (unit.start, unit.start)
    ]
    assert units[0].start == 0 and units[-1].stop == images and all(map(len, units))
    assert all(unit.start % CHUNK_ROWS == unit.start % batch == 0 for unit in units)
    assert len(units) <= UNITS * count
    if images > UNITS * count * math.lcm(CHUNK_ROWS, batch):
        assert len(units) > UNITS * count / 2


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A task of several chunks, with code beside it."""
    folder = tmp_path_factory.mktemp("many")
    write_digits(folder / "images" / "train", per_class=165, classes=10)
    write_digits(folder / "images" / "val", per_class=4, classes=10, start=170)
    (folder / "noting.py").write_text(LAYOUT)
    (folder / "many.toml").write_text(TASK)
    return folder


@pytest.fixture(scope="module")
def alone(many, costs):
    """What one process extracts, and how it scores."""
    ended = launch(1, *command(many, costs, "alone"), **environment(many, "alone"))
    assert ended[0][0] == 0, ended
    return contents(many, "alone")


def command(many, costs, name):
    costs.lend(many / name / "results")
    (many / "loads").unlink(missing_ok=True)
    return [
        *(
            ROOT / "run_suite.py",
            "-m",
            "test_vit",
            "--weights",
            "random",
            "-p",
            "knn",
            "--threads",
            "1",
            "--no-report",
        ),
        *("-t", many / "many.toml", "--trust-task-code", "--results", many / name / "results"),
    ]


def environment(many, name):
    return {"MIXMIM_BENCH_CACHE": str(many / name / "cache"), "PYTHONPATH": str(ROOT)}


def entries(many, name):
    return FeatureStore(many / name / "cache" / "features").entries()


def contents(many, name):
    """The bytes of the files of each entry, and the scores."""
    files = {
        entry.about["role"]: {
            path.name: path.read_bytes() for path in sorted(entry.folder.rglob("*")) if path.is_file()
        }
        for entry in entries(many, name)
    }
    assert all(sorted(each) == ["made_by.json", "rows.npz", "whole.json", "x.npy"] for each in files.values())
    (record,) = RunStore(many / name / "results").records()
    return files, record.scores


def loads(many):
    """How often each image of train or val was loaded, by process."""
    lines = [line.split() for line in (many / "loads").read_text().splitlines()]
    return {rank: Counter(row for r, row in lines if r == rank) for rank in ("0", "1")}


def test_two_processes_extract_what_one_does(many, costs, alone):
    ended = launch(2, *command(many, costs, "two"), **environment(many, "two"))
    assert [status for status, _ in ended] == [0, 0], ended
    assert contents(many, "two") == alone and set(alone[0]) == {"train", "val", "test"}
    by = loads(many)
    assert len(by["0"] & by["1"]) == 0, "an image was extracted twice"
    total = by["0"] + by["1"]
    assert total.total() == TRAIN + VAL and set(total.values()) == {1}
    assert min(by["0"].total(), by["1"].total()) >= CHUNK_ROWS


def killed(many, costs, name, rank):
    """Kill a process of two at a random moment of the extraction of train; return how they end."""
    started = start(2, *command(many, costs, name), **environment(many, name))
    until = time.monotonic() + 200
    while not (many / "loads").exists() and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(np.random.default_rng(int(time.time())).uniform(0, 4))
    os.kill(started[rank].pid, signal.SIGKILL)
    outputs = [process.communicate(timeout=200)[0] for process in started]
    return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]


def finish(many, costs, name):
    ended = launch(2, *command(many, costs, name), **environment(many, name))
    assert [status for status, _ in ended] == [0, 0], ended


def test_what_a_killed_process_leaves_is_taken_over(many, costs, alone):
    """The main process goes on alone, as far as nothing needs the other; it says so at the end."""
    ended = killed(many, costs, "follower", 1)
    (record,) = RunStore(many / "follower" / "results").records()
    assert not record.error, ended
    assert contents(many, "follower") == alone
    assert "lost another one" in ended[0][1] and ended[0][0] == 2


def test_a_job_whose_main_process_is_killed_is_continued(many, costs, alone):
    ended = killed(many, costs, "leader", 0)
    assert (ended[0][0] == -signal.SIGKILL and "ProcessLost" in ended[1][1]) or "lost another" in ended[1][1]
    (entry,) = [each for each in entries(many, "leader") if each.about["role"] == "train"]
    done = (
        {path.name for path in (entry.folder / "chunks").glob("*.npz")} if entry.manifest() is None else None
    )
    finish(many, costs, "leader")
    assert contents(many, "leader") == alone
    if done is not None:  # chunks that were there are not extracted again
        again = sum(loads(many).values(), Counter()).total()
        assert again <= TRAIN + VAL - CHUNK_ROWS * len(done) + CHUNK_ROWS


@pytest.mark.slow
def test_kills_of_all_at_random_moments_lose_nothing(many, costs, alone):
    random = np.random.default_rng(int(time.time()))
    for _ in range(3):
        started = start(2, *command(many, costs, "kills"), **environment(many, "kills"))
        until = time.monotonic() + 100
        while not (many / "loads").exists() and time.monotonic() < until:
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started[0].wait(random.uniform(0, 5))
        for process in started:
            process.kill()
            process.communicate()
    finish(many, costs, "kills")
    assert contents(many, "kills") == alone
