"""Several processes and unkind machines: claims, disks that end, names that are no text, Ctrl-C twice."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from conftest import write_digits

from mixmim_bench.atomic import writing_whole
from mixmim_bench.errors import BenchError
from mixmim_bench.features import store as feature_store
from mixmim_bench.suite.records import RunStore

ARGS = ("run", "-m", "test_vit", "--weights", "random", "-p", "knn", "-p", "linear")


@pytest.fixture
def run_ids(run, my_task, tmp_path):
    """The ids of the two runs, from a first start that did them."""
    run(*ARGS, "-t", my_task, "--results", tmp_path / "first")
    return {record.protocol: record.run_id for record in RunStore(tmp_path / "first").records()}


def hold(store, run_id, until, before_release):
    """Hold a run as another process does, until something is true."""
    held = threading.Event()

    def holding():
        with store.claim(run_id) as claimed:
            assert claimed
            held.set()
            while not until():
                time.sleep(0.05)
            before_release()

    thread = threading.Thread(target=holding)
    thread.start()
    assert held.wait(10)
    return thread


@pytest.mark.parametrize("other_finishes", [True, False])
def test_a_run_that_another_process_does_comes_last(run, run_ids, my_task, tmp_path, other_finishes):
    results = RunStore(tmp_path / "r")
    results.prepare()

    def finish():
        first = RunStore(tmp_path / "first")
        (record,) = [r for r in first.records() if r.protocol == "knn"]
        results.save(record, first.arrays(record.run_id))

    def other_is_done():
        return results.result(run_ids["linear"]) is not None

    thread = hold(results, run_ids["knn"], other_is_done, finish if other_finishes else lambda: None)
    said = run(*ARGS, "-t", my_task, "--results", results.folder).output
    thread.join()
    lines = said.splitlines()
    order = [line for line in lines if line.startswith("[")]
    assert [line[:5] for line in order] == ["[1/2]", "[2/2]", "[1/2]"]
    assert "  claimed by another process" in lines
    assert ("  finished meanwhile by another process" in lines) == other_finishes
    assert {record.protocol for record in results.records()} == {"knn", "linear"}


def test_a_claim_ends_with_its_process(tmp_path):
    results = RunStore(tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from mixmim_bench.suite.records import RunStore\n"
        "with RunStore(Path(sys.argv[1])).claim('x'): print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"held\n"
        with results.claim("x") as claimed:
            assert not claimed
        child.kill()
    with results.claim("x") as claimed:
        assert claimed


def test_two_that_write_a_file_at_once_write_it_whole(tmp_path):
    """Machines that share a folder may have processes of one id."""
    path = tmp_path / "file"
    with writing_whole(path) as first:
        first.write(b"one")
        with writing_whole(path) as second:
            second.write(b"another")
        assert path.read_bytes() == b"another"
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_results_that_are_deleted_meanwhile_are_missed(run, my_task, tmp_path, monkeypatch):
    saved = RunStore.save

    def save_and_lose(store, record, arrays):
        saved(store, record, arrays)
        if record.protocol == "knn":
            (store.runs / f"{record.run_id}.json").unlink()

    monkeypatch.setattr(RunStore, "save", save_and_lose)
    said = run(*ARGS, "-t", my_task, "--results", tmp_path / "r", code=1).output
    assert "although finished: 1 result (" in said and "mine · knn" in said


def test_a_full_cache_disk_is_named_with_the_variable(run, my_task, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_store, "writing_whole", full)
    said = run(*ARGS[:-2], "-t", my_task, "--results", tmp_path / "r", code=1).output
    assert "cannot cache features in" in said and "No space left on device" in said
    assert "$MIXMIM_BENCH_CACHE" in said and "Traceback" not in said
    with pytest.raises(BenchError, match="No space left"):
        feature_store.FeatureStore(tmp_path).entry({}, {}).write_chunk(0, 0, {})


def test_names_that_are_no_text_end_nothing(run, my_task, tmp_path):
    """An image with such a name cannot be read; its run fails with a record, the others go on."""
    folder = os.fsencode(tmp_path / "images" / "val" / "digit 0")
    with open(folder + b"/caf\xe9.png", "wb") as file:  # noqa: PTH123 (a path of bytes)
        file.write(b"not an image")
    write_digits(tmp_path / "images" / "val", per_class=1, start=60)
    said = run(*ARGS, "-t", my_task, "-t", "digits", "--results", tmp_path / "r", code=1).output
    assert "caf\\xe9.png" in said or "caf\\udce9.png" in said
    records = RunStore(tmp_path / "r").records()
    assert sorted((r.task, r.protocol, bool(r.error)) for r in records) == [
        ("digits", "knn", False),
        ("digits", "linear", False),
        ("mine", "knn", True),
        ("mine", "linear", True),
    ]
    run("report", "--results", tmp_path / "r")


def test_a_second_ctrl_c_ends_at_once_and_without_a_traceback(tmp_path):
    code = (
        "import time, click\n"
        "from mixmim_bench.cli import main\n"
        "@main.command()\n"
        "def wait():\n"
        "    try:\n"
        "        print('waiting', flush=True); time.sleep(60)\n"
        "    finally:\n"
        "        print('closing', flush=True); time.sleep(60)\n"
        "main(['wait'])\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, **pipes) as child:
        for word in ("waiting\n", "closing\n"):
            assert child.stdout.readline() == word
            child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=30)
    assert child.returncode == -signal.SIGINT and said == ("", "")


def test_the_process_that_measures_ends_with_its_parent(tmp_path):
    code = (
        "from mixmim_bench.cost import measure; from mixmim_bench.machine import Machine\n"
        "from mixmim_bench.specs import ModelSpec; print('ready', flush=True)\n"
        "measure(ModelSpec(name='h', arch='mixmim_large'), (384, 384), Machine(device='cpu'))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"ready\n"
        until = time.monotonic() + 60
        while not (children := psutil.Process(parent.pid).children()) and time.monotonic() < until:
            time.sleep(0.05)
        parent.kill()
    assert children
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive


def test_a_process_that_holds_features_and_writes_nothing_is_not_waited_for(tmp_path, monkeypatch):
    """As one that was stopped; while it writes it is waited for."""
    monkeypatch.setattr(feature_store, "LOOK_S", 0.1)
    monkeypatch.setattr(feature_store, "STALLED_S", 1.0)
    entry = feature_store.FeatureStore(tmp_path).entry({"a": 1}, {})
    code = (
        "import sys, time; from filelock import FileLock\n"
        "with FileLock(sys.argv[1]): print('held', flush=True); time.sleep(60)\n"
    )
    lock = entry.folder.with_suffix(".lock")
    with subprocess.Popen([sys.executable, "-c", code, lock], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"held\n"
        started = time.monotonic()
        with (
            pytest.raises(BenchError, match="has written nothing for"),
            feature_store.filling({"own": entry}, 4),
        ):
            pass
        assert 1.0 <= time.monotonic() - started < 30
        child.kill()
    with feature_store.filling({"own": entry}, 4) as lacking:
        assert lacking is not None
