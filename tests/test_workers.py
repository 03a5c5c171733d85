"""Worker processes that die or stall, and shared memory that is too small for their batches."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_images import PLAIN

from mixmim_bench.data import workers
from mixmim_bench.data.images import Arrays
from mixmim_bench.data.loading import ImageDataset, batches, in_groups
from mixmim_bench.data.transforms import ImageOnly, eval_transform
from mixmim_bench.errors import BenchError
from mixmim_bench.memory import is_out_of_memory

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


class Dying(Arrays):
    """Images of which one ends the process that reads it."""

    def load(self, row):
        if row == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(row)


class Stalling(Arrays):
    """Images of which one is on a disk that does not answer."""

    def load(self, row):
        if row == 5:
            time.sleep(60)
        return super().load(row)


def loaded(images, processes=2):
    dataset = ImageDataset(images, ImageOnly(eval_transform(PLAIN)), digests=True)
    return list(batches(dataset, in_groups(range(len(images)), 4), processes))


def test_more_workers_than_cores_are_nobodys_business():
    """The tests make an error of every warning."""
    assert len(loaded(Arrays(PIXELS, "pixels"), len(os.sched_getaffinity(0)) + 1)) == 3


@pytest.fixture(params=[None, "forkserver"])
def start_method(request, monkeypatch):
    """Start workers as copies of this process, or from a server, as beside OpenVINO."""
    context = multiprocessing.get_context(request.param) if request.param else None
    monkeypatch.setattr(workers, "_context", lambda _: context)


@pytest.fixture(autouse=True)
def _forked(monkeypatch):
    """Whatever else this process has imported."""
    monkeypatch.setattr(workers, "_context", lambda _: None)


@pytest.mark.usefixtures("start_method")
def test_workers_change_no_batch():
    alone, together = loaded(Arrays(PIXELS, "pixels"), 0), loaded(Arrays(PIXELS, "pixels"))
    for ours, theirs in zip(alone, together, strict=True):
        assert torch.equal(ours.images, theirs.images) and torch.equal(ours.digests, theirs.digests)


@pytest.mark.usefixtures("start_method")
def test_a_worker_that_dies_is_an_error():
    with pytest.raises(BenchError, match=r"a worker process died while reading images \(Killed\)") as caught:
        loaded(Dying(PIXELS, "pixels"))
    assert "--workers" in str(caught.value) and not is_out_of_memory(caught.value)


@pytest.mark.usefixtures("start_method")
def test_a_worker_that_stalls_is_an_error(monkeypatch):
    monkeypatch.setattr(workers, "STALLED_S", 2)
    with pytest.raises(BenchError, match="no batch from the 2 worker processes for 2 s"):
        loaded(Stalling(PIXELS, "pixels"))


def test_images_that_cannot_be_sent_to_a_server_are_read_by_copies(monkeypatch):
    class Local(Arrays):
        pass

    monkeypatch.setattr(workers, "_context", lambda _: multiprocessing.get_context("forkserver"))
    assert len(loaded(Local(PIXELS, "pixels"))) == 3


def test_workers_come_from_a_server_beside_openvino(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "openvino", sys)
    assert workers._context(2).get_start_method() == "forkserver"
    assert workers._context(0) is None


def test_an_error_of_a_worker_stays_what_it_is():
    class Failing(Arrays):
        def load(self, _row):
            raise RuntimeError("DataLoader worker is a word that errors may hold")

    with pytest.raises(RuntimeError, match="is a word"):
        loaded(Failing(PIXELS, "pixels"))


def test_batches_that_cannot_be_shared_go_through_pipes(monkeypatch):
    shared = loaded(Arrays(PIXELS, "pixels"))

    def full(_tensor):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    monkeypatch.setattr(workers, "_warned", set())
    with pytest.warns(UserWarning, match="/dev/shm is too small for the batches of 2 workers"):
        piped = loaded(Arrays(PIXELS, "pixels"))
    for ours, theirs in zip(piped, shared, strict=True):
        for name in ("rows", "images", "digests"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))


SMALL = """\
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from mixmim_bench.cli import main
from mixmim_bench.data.images import Arrays
from dataclasses import replace
from test_workers import PLAIN, ImageDataset, ImageOnly, batches, eval_transform, in_groups
images = Arrays(np.zeros((256, 8, 8, 3), np.uint8), "zeros")
dataset = ImageDataset(images, ImageOnly(eval_transform(replace(PLAIN, size=(224, 224)))))
rows = [b.rows.tolist() for b in batches(dataset, in_groups(range(256), 64), 4)]
assert sum(rows, []) == list(range(256)), rows
print("done")
"""


def test_with_a_really_small_dev_shm(tmp_path):
    """In a mount namespace of its own, with 64 MB as in Docker."""
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    alone = ["unshare", "--map-root-user", "--mount", "bash", "-c"]
    if sys.platform != "linux" or subprocess.run([*alone, mount], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system of his own")
    script = tmp_path / "small.py"
    script.write_text(SMALL.format(tests=str(Path(__file__).parent)))
    found = subprocess.run(
        [*alone, f"{mount} && exec {sys.executable} {script}"], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout == "done\n" and "/dev/shm is too small" in found.stderr
    assert "This DataLoader will create" not in found.stderr
