"""Runs in worker processes: several devices, time limits, and processes that hang or die."""

import io
import os
import re
import signal
import time

import psutil
import pytest
from children import forked
from conftest import write_digits
from rich.console import Console
from test_sharing import hold

from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import BenchError
from mixmim_bench.features.store import FeatureStore
from mixmim_bench.machine import Machine, open_machine
from mixmim_bench.suite.fleet import Fleet, parse_devices
from mixmim_bench.suite.queued import in_words
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.session import Session
from mixmim_bench.suite.wanted import Selection

ARGS = ("run", "-m", "test_vit", "--weights", "random", "-p", "knn", "--no-report")

# An image folder whose image of one row does something else while there is a file `MOOD`.
LAYOUT = """\
import ctypes, os, time
from pathlib import Path

from mixmim_bench.data.images import Part
from mixmim_bench.data.layouts.folder import ImageFolder

HERE = Path(__file__).parent


class Moody:
    def __init__(self, images):
        self.images, self.count = images, 0

    def __len__(self):
        return len(self.images)

    def __getattr__(self, name):
        if name.startswith("__") or name == "images":
            raise AttributeError(name)
        return getattr(self.images, name)

    def load(self, row):
        mood, self.count = HERE / "mood", self.count + 1
        late = mood.exists() and mood.read_text() == "sleeps at the end"
        if mood.exists() and (self.count == len(self) if late else row == len(self) - 1):
            with (HERE / "attempts").open("a") as file:
                file.write(f"{os.getpid()}\\n")
            match mood.read_text():
                case "sleeps once":
                    mood.unlink()
                    time.sleep(1000)
                case "sleeps" | "sleeps at the end":
                    time.sleep(1000)
                case "holds the interpreter":
                    ctypes.PyDLL(None).sleep(1000)
                case "dies":
                    os.kill(os.getpid(), 9)
                case "dies once":
                    mood.unlink()
                    os.kill(os.getpid(), 9)
        return self.images.load(row)


class Own(ImageFolder):
    def part(self, name):
        part = super().part(name)
        return Part(part.ids, part.targets, Moody(part.images)) if name == "val" else part
"""


@pytest.fixture
def moody(my_task, tmp_path, costs):
    """A task with code beside it, whose last test image may be of a mood, and `plain.toml` without."""
    costs.lend(tmp_path / "r")
    (tmp_path / "moods.py").write_text(LAYOUT)
    plain = my_task.read_text().replace("size = 32", "size = 48")  # with features of its own
    (tmp_path / "plain.toml").write_text(plain)
    my_task.write_text(my_task.read_text().replace("folder:ImageFolder", "moods:Own"))
    return my_task


def records(results):
    return {(each.task, each.protocol, each.identity["seed"]): each for each in RunStore(results).records()}


def attempts(tmp_path):
    path = tmp_path / "attempts"
    return len(path.read_text().split()) if path.exists() else 0


# -- devices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "gpus", "devices"),
    [
        ("0,2", 3, ("cuda:0", "cuda:2")),
        ("cuda:1, 0", 2, ("cuda:1", "cuda:0")),
        ("all", 3, ("cuda:0", "cuda:1", "cuda:2")),
        ("cpu,cpu", 0, ("cpu", "cpu")),
        ("cpu:0,cpu:1,cpu:2", 4, ("cpu", "cpu", "cpu")),
        ("cpu", 0, ("cpu",)),
    ],
)
def test_devices_are_named_by_index_or_kind(text, gpus, devices):
    assert parse_devices(text, gpus) == devices


@pytest.mark.parametrize(
    ("text", "gpus", "told"),
    [
        ("3", 2, "no cuda:3 in this machine; it has 2 GPUs: cuda:0, cuda:1"),
        ("cuda:1", 1, "no cuda:1 in this machine; it has 1 GPU: cuda:0"),
        ("0", 0, "no cuda:0 in this machine; it has no GPU; cpu,cpu starts two processes"),
        ("all", 0, "has no GPU; cpu,cpu"),
        ("0,0", 2, "cuda:0 is named twice"),
        ("0,cpu", 2, "name GPUs or the CPU, not both"),
        ("cuda", 2, "no device 'cuda'; did you mean cuda:"),
        ("gpu:0", 1, "no device 'gpu:0'; did you mean cuda:0 or cpu?"),
        ("0,", 1, "no device ''"),
        ("-1", 1, "no device '-1'"),
    ],
)
def test_devices_that_are_not_there_are_named(text, gpus, told):
    with pytest.raises(BenchError) as error:
        parse_devices(text, gpus)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("args", "environment", "told"),
    [
        (("--devices", "cpu,cpu", "--device", "cpu"), {}, "--device cpu and --devices cpu,cpu: give one"),
        (("--devices", "cpu,gpu"), {}, "no device 'gpu'; did you mean cpu?"),
        (
            ("--devices", "cpu,cpu"),
            {"WORLD_SIZE": "2", "RANK": "0"},
            "this is one of 2 processes of torchrun",
        ),
        (
            ("--timeout-per-run", "1h"),
            {"WORLD_SIZE": "2", "RANK": "1"},
            "this is one of 2 processes of torchrun",
        ),
        (("--timeout-per-run", "5 days"), {}, "'5 days' is not a time: give seconds, or a number with s"),
        (("--timeout-per-run", "0"), {}, "'0' is not a time"),
        (("--timeout-per-run", "-3s"), {}, "'-3s' is not a time"),
    ],
)
def test_wrong_options_are_explained(run, tmp_path, monkeypatch, args, environment, told):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    said = run(*ARGS, "-t", "digits", *args, "--results", tmp_path, code=2).output
    assert told in " ".join(said.split()) and "Traceback" not in said


def test_times_have_units(run, tmp_path):
    suite = run(*ARGS, "-t", "digits", "--timeout-per-run", "1.5h", "--print-suite").output
    assert "timeout_per_run = 5400.0" in suite
    for i, text in enumerate(["5400.0", '"90m"', "5400", '"5400 s"']):
        path = tmp_path / f"{i}.toml"
        path.write_text(suite.replace("5400.0", text))
        assert "timeout_per_run = 5400.0" in run("run", path, "--print-suite").output
    assert [in_words(s) for s in (90, 90.5, 1800, 5400, 7200)] == [
        "90 s",
        "90.5 s",
        "30 min",
        "90 min",
        "2 h",
    ]


def test_two_processes_do_what_one_does(run, my_task, tmp_path):
    """Bit for bit, since each has as many threads; what is extracted is extracted once."""
    args = (*ARGS, "-p", "linear", "-t", my_task, "--seed", 0, "--seed", 1, "--threads", 1)
    said = run(*args, "--devices", "cpu,cpu", "--results", tmp_path / "two").output
    entries = FeatureStore().entries()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXMIM_BENCH_CACHE", str(tmp_path / "other cache"))
        run(*args, "--results", tmp_path / "one")
    two, one = records(tmp_path / "two"), records(tmp_path / "one")
    assert {key: each.scores for key, each in two.items()} == {key: each.scores for key, each in one.items()}
    assert len(one) == 4 and len(entries) == 6  # of train, val and test, of two networks
    for seed in (0, 1):
        extracted = [each.timings["extract_s"] > 0 for key, each in two.items() if key[2] == seed]
        assert sorted(extracted) == [False, True]
    for name in ("cpu:0", "cpu:1"):
        assert any(line.startswith(f"{name}: [") for line in said.splitlines()), said
    assert all(each.costs["run"] in RunStore(tmp_path / "two").read_costs() for each in two.values())
    assert "4 of 4 runs finished already" in run(*args, "--results", tmp_path / "two").output


def test_processes_on_the_cpu_share_its_threads(monkeypatch):
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr("mixmim_bench.machine._threads_of_torch", lambda: 7)
        assert open_machine("cpu", beside=3).threads == 2
        assert open_machine("cpu", beside=9).threads == 1
        assert open_machine("cpu", threads=2, beside=9).threads == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_a_device_that_cannot_be_used_is_left_out(my_task, tmp_path):
    said = Said()
    fleet = Fleet(devices=("cpu", "nonsense"), settings={"threads": 1}, roots=DataRoots())
    assert not session(my_task, tmp_path, fleet, said).run().failed
    assert "nonsense: device nonsense cannot be used:" in said.text
    assert len(records(tmp_path / "r")) == 2


def test_without_a_device_the_suite_ends_with_the_reason(my_task, tmp_path):
    fleet = Fleet(devices=("nonsense",), settings={}, roots=DataRoots())
    with pytest.raises(BenchError, match=r"device nonsense cannot be used: .*nonsense"):
        session(my_task, tmp_path, fleet, Said()).run()


class Said:
    """What a console has printed."""

    def __init__(self):
        self.console = Console(record=True, file=io.StringIO())

    @property
    def text(self):
        return self.console.export_text(clear=False)


def session(task, tmp_path, fleet, said):
    selection = Selection(
        models=["test_vit"], tasks=[str(task)], protocols=["knn"], weights="random", seeds=(0, 1)
    )
    machine = Machine(device="cpu")
    return Session(selection, RunStore(tmp_path / "r"), lambda: machine, said.console, fleet=fleet)


def test_a_run_that_another_suite_does_comes_last(my_task, tmp_path):
    """And is found finished, without its time limit counting meanwhile."""
    fleet, said = Fleet(devices=("cpu",), settings={"threads": 1}, timeout_s=300), Said()
    assert not session(my_task, tmp_path, fleet, said).run().failed
    results, first = RunStore(tmp_path / "r"), RunStore((tmp_path / "r").rename(tmp_path / "first"))
    record = next(each for each in first.records() if each.identity["seed"] == 0)
    other = session(my_task, tmp_path, fleet, again := Said())

    def finish():
        results.save(record, first.arrays(record.run_id))

    thread = hold(results, record.run_id, lambda: len(results.finished()) == 1, finish)
    assert not other.run().failed
    thread.join()
    lines = [line.rstrip() for line in again.text.splitlines()]
    assert [line[:5] for line in lines if line.startswith("[")] == ["[1/2]", "[2/2]", "[1/2]"]
    assert "  claimed by another process" in lines and "  finished meanwhile by another process" in lines
    assert len(records(tmp_path / "r")) == 2


@pytest.mark.slow
def test_two_suites_with_two_processes_each_share_a_folder(costs, my_task, tmp_path):
    costs.lend(tmp_path / "r")
    args = (*ARGS, "-p", "linear", "-t", my_task, "--seed", 0, "--seed", 1, "--results", tmp_path / "r")
    logs = [tmp_path / "log0", tmp_path / "log1"]
    drivers = [forked(*args, "--devices", "cpu,cpu", log=log) for log in logs]
    assert [driver.wait() for driver in drivers] == [0, 0], [log.read_text() for log in logs]
    assert len(records(tmp_path / "r")) == 4
    assert sum(log.read_text().count("top1") for log in logs) >= 4
    assert sum(len(re.findall(r"top1 [\d.]+ % .* s$", log.read_text(), re.M)) for log in logs) == 4


# -- time limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mood", "workers"),
    [
        ("sleeps", 0),
        pytest.param("holds the interpreter", 0, marks=pytest.mark.slow),
        pytest.param("sleeps", 2, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_hangs_ends_and_the_others_go_on(run, moody, tmp_path, mood, workers):
    """In Python, in C code that holds the interpreter's lock, and in a process that decodes."""
    (tmp_path / "mood").write_text(mood)
    args = (
        *ARGS,
        "-t",
        moody,
        "-t",
        moody.with_name("plain.toml"),
        "--trust-task-code",
        "--workers",
        workers,
    )
    args = (*args, "--results", tmp_path / "r")
    said = run(*args, "--timeout-per-run", "10s", code=1).output
    done = records(tmp_path / "r")
    error = done.pop(("mine", "knn", 0)).error
    assert error.startswith("TookTooLong: took longer than 10 s (--timeout-per-run); its checkpoints and")
    assert error in said and "1 run failed; rerun the command to retry" in said
    assert [(key, each.error) for key, each in done.items()] == [(("plain", "knn", 0), "")]
    assert attempts(tmp_path) == 1
    pids = list(map(int, (tmp_path / "attempts").read_text().split()))
    assert not any(psutil.pid_exists(pid) and is_running(pid) for pid in pids)
    (tmp_path / "mood").unlink()
    run(*args, "--timeout-per-run", "10m")
    assert not any(each.error for each in records(tmp_path / "r").values())


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_features_of_a_run_that_took_too_long_remain(run, moody, tmp_path):
    write_digits(tmp_path / "images" / "val", per_class=176)  # more than a chunk
    (tmp_path / "mood").write_text("sleeps at the end")
    args = (*ARGS, "-t", moody, "--trust-task-code", "--results", tmp_path / "r")
    run(*args, "--timeout-per-run", "12", code=1)
    (entry,) = [each for each in FeatureStore().entries() if each.about["role"] == "test"]
    (chunk,) = (entry.folder / "chunks").iterdir()
    assert chunk.name == "000000000.npz" and entry.manifest() is None
    x, made = entry._read(0, "x"), chunk.stat().st_mtime_ns
    (tmp_path / "mood").unlink()
    run(*args, "--timeout-per-run", "10m")
    assert (entry.open().x[: len(x)] == x).all() and len(entry.open().x) > 512
    assert entry._file("x.npy").stat().st_mtime_ns > made


def test_a_quick_run_is_not_ended(run, my_task, tmp_path):
    said = run(*ARGS, "-t", my_task, "--timeout-per-run", "5m", "--results", tmp_path / "r").output
    (record,) = records(tmp_path / "r").values()
    assert not record.error and "[1/1] test_vit · mine · knn (random init)" in said.splitlines()


# -- processes that die -------------------------------------------------------------------------------


def test_a_run_whose_process_dies_twice_has_failed_and_the_others_go_on(run, moody, tmp_path):
    (tmp_path / "mood").write_text("dies")
    args = (
        *ARGS,
        "-t",
        moody,
        "-t",
        moody.with_name("plain.toml"),
        "--trust-task-code",
        "--results",
        tmp_path / "r",
    )
    said = run(*args, "--devices", "cpu,cpu", code=1).output
    done = records(tmp_path / "r")
    error = done.pop(("mine", "knn", 0)).error
    assert error.startswith(
        "WorkerEnded: its process has ended in each of 2 attempts: it was ended by SIGKILL"
    )
    assert attempts(tmp_path) == 2 and "1 run failed" in said
    assert said.count("the process of test_vit · mine · knn has ended: it was ended by SIGKILL") == 2
    assert [(key, each.error) for key, each in done.items()] == [(("plain", "knn", 0), "")]


@pytest.mark.slow
def test_a_run_whose_process_dies_once_is_done_again(run, moody, tmp_path):
    (tmp_path / "mood").write_text("dies once")
    args = (*ARGS, "-t", moody, "--trust-task-code", "--results", tmp_path / "r")
    run(*args, "--devices", "cpu,cpu")
    (record,) = records(tmp_path / "r").values()
    assert not record.error and attempts(tmp_path) == 1


def started_two(costs, moody, tmp_path, *more, start=forked):
    """Start two runs on two processes, and return the driver and the two when both hang."""
    write_digits(tmp_path / "images" / "val", per_class=4, start=40)
    (tmp_path / "mood").write_text("sleeps")
    costs.lend(tmp_path / "r")
    args = (*ARGS, "-t", moody, "--trust-task-code", "--seed", 0, "--seed", 1, "--results", tmp_path / "r")
    driver = start(*args, "--devices", "cpu,cpu", *more, log=tmp_path / "log")
    until = time.monotonic() + 120
    while attempts(tmp_path) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    pids = list(map(int, (tmp_path / "attempts").read_text().split()))
    assert len(set(pids)) == 2, (tmp_path / "log").read_text()
    return driver, pids


@pytest.mark.parametrize(
    ("sent", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_ctrl_c_and_sigterm_end_all(costs, moody, tmp_path, sent, status):
    driver, pids = started_two(costs, moody, tmp_path)
    os.kill(driver._process.pid, sent)
    assert driver.wait(60) == status, (tmp_path / "log").read_text()
    assert not any(map(is_running, pids))
    assert records(tmp_path / "r") == {}
    if sent == signal.SIGINT:
        assert "Interrupted. Finished runs are saved" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_processes_end_with_a_driver_that_is_killed(costs, moody, tmp_path):
    driver, pids = started_two(costs, moody, tmp_path)
    driver.kill()
    until = time.monotonic() + 30
    while any(map(is_running, pids)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(is_running, pids))
