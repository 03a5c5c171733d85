"""Runs as tasks of a Ray cluster: the same results, nodes that die or differ, time limits, two drivers."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from ray import cluster_utils
from test_fleet import moody  # noqa: F401 (a fixture)
from test_full_disks import small_disk

from mixmim_bench.data.roots import DataRoots
from mixmim_bench.provenance import package_digest, provenance
from mixmim_bench.specs import Run
from mixmim_bench.suite import node
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.resolve import resolve
from mixmim_bench.suite.wanted import Selection

PLAN = (
    "-m",
    "pixels",
    "-m",
    "test_vit=random",
    "-t",
    "digits@limit200",
    "-p",
    "linear",
    "-p",
    "knn",
    "--threads",
    "1",
    "--no-report",
)
PATIENCE_S = 240


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head that computes nothing, and two nodes with a core each; they share their cache with drivers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXMIM_BENCH_CACHE", str(tmp_path_factory.mktemp("cache of nodes")))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # else other tests come first
        head = {"num_cpus": 0, "include_dashboard": False}
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.cache = os.environ["MIXMIM_BENCH_CACHE"]
        yield cluster
        cluster.shutdown()


class Driver:
    """`mixmim-bench run --ray` in a process of its own, and what it prints."""

    def __init__(self, cluster, results, *options, cache=""):
        command = [sys.executable, "-m", "mixmim_bench.cli", "run", "--ray", cluster.address]
        self.process = subprocess.Popen(
            [*command, "--results", str(results), *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MIXMIM_BENCH_CACHE": str(cache or cluster.cache)},
            start_new_session=True,
        )
        self.lines = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.decode())

    @property
    def output(self):
        return "".join(self.lines)

    def wait_for(self, pattern):
        """Wait until it has printed something; returns the match."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            found = re.search(pattern, self.output)
            if found:
                return found
            if self.process.poll() is not None and not self._thread.is_alive():
                break
            time.sleep(0.1)
        raise AssertionError(f"{pattern!r} is not in:\n{self.output}")

    def end(self, code=0):
        """Wait for its end; returns what it has printed."""
        try:
            ended = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            ended = self.process.wait()
        self._thread.join()
        self.process.stdout.close()
        assert ended == code, self.output
        return self.output


def results_of(folder):
    store = RunStore(Path(folder))
    return {record.run_id: record for record in store.records()}


def same_results(one, other):
    """Compare scores and predictions of two results folders, bit for bit."""
    mine, theirs = results_of(one), results_of(other)
    assert set(mine) == set(theirs) and mine
    for run_id, record in mine.items():
        assert not record.error and record.scores == theirs[run_id].scores
        assert record.chosen == theirs[run_id].chosen
        arrays = [RunStore(Path(folder)).arrays(run_id) for folder in (one, other)]
        assert set(arrays[0]) == set(arrays[1])
        for name, values in arrays[0].items():
            np.testing.assert_array_equal(values, arrays[1][name])


@pytest.fixture
def alone(run, tmp_path, monkeypatch):
    """The results of one machine, whose costs are known to the results folder of the cluster."""
    monkeypatch.setenv("MIXMIM_BENCH_CACHE", str(tmp_path / "another cache"))
    run("run", *PLAN, "--results", tmp_path / "alone")
    shutil.copytree(tmp_path / "alone" / "costs", tmp_path / "cluster" / "costs")
    return tmp_path / "alone"


def test_a_cluster_gives_the_results_of_one_machine_though_a_node_dies(
    cluster,
    costs,
    run,
    moody,  # noqa: F811
    tmp_path,
):
    plan = (
        "-m",
        "test_vit=random",
        "-t",
        moody,
        "-t",
        "digits@limit200",
        "-p",
        "knn",
        "--threads",
        "1",
        "--no-report",
    )
    results = tmp_path / "cluster"
    for each in (results, tmp_path / "alone"):
        costs.lend(each)
    cluster.add_node(num_cpus=1)
    nodes = {each.node_id[:6]: each for each in cluster.list_all_nodes()}
    (tmp_path / "mood").write_text("sleeps once")
    driver = Driver(cluster, results, *plan, "--trust-task-code")
    headline = rf"(\w{{6}}): \[\d/2\] test_vit · {moody.stem}"
    doomed = driver.wait_for(headline)[1]
    while (tmp_path / "mood").exists():
        time.sleep(0.1)
    cluster.remove_node(nodes[doomed], allow_graceful=False)
    output = driver.end()
    assert "it is left out: it offers no core to tasks" in output  # the head
    assert re.search("has failed: (NodeDiedError|WorkerCrashedError)", output), output
    first, second = re.findall(headline, output)
    assert first == doomed != second
    assert not (results / ".incoming").exists()
    run("run", *plan, "--trust-task-code", "--results", tmp_path / "alone")
    same_results(results, tmp_path / "alone")


def test_drivers_on_one_folder_share_the_work_of_one_that_was_killed(cluster, tmp_path, alone):
    driver = Driver(cluster, tmp_path / "cluster", *PLAN)
    driver.wait_for(r"top1 \d")
    os.killpg(driver.process.pid, signal.SIGKILL)
    driver.end(-signal.SIGKILL)
    runs = tmp_path / "cluster" / "runs"
    done = {path.name: path.stat().st_mtime_ns for path in runs.glob("*.json")}
    assert len(done) < 3
    saved = next(run_id for run_id in results_of(alone) if f"{run_id}.json" not in done)
    shutil.copytree(alone, tmp_path / "cluster" / ".incoming" / f"{saved}-left")  # done, but not taken over
    own = tmp_path / "cache of a driver"  # features and checks are then each node's own
    drivers = [Driver(cluster, tmp_path / "cluster", *PLAN, cache=cache) for cache in ("", own)]
    outputs = [driver.end() for driver in drivers]
    after = {path.name: path.stat().st_mtime_ns for path in runs.glob("*.json")}
    assert len(after) == 4 and done.items() <= after.items()
    assert sum(len(re.findall(r"  top1 \d", output)) for output in outputs) == 3 - len(done)
    left = list((tmp_path / "cluster").glob(".incoming/*"))
    assert all(path.name.startswith("driver-") for path in left)  # of the one that was killed
    same_results(tmp_path / "cluster", alone)


def test_a_run_that_never_ends_ends_at_its_time_limit(cluster, moody, tmp_path):  # noqa: F811
    (tmp_path / "mood").write_text("holds the interpreter")
    driver = Driver(
        *(cluster, tmp_path / "results", "-m", "pixels", "-p", "knn"),
        *("-t", moody, "-t", tmp_path / "plain.toml", "--trust-task-code", "--timeout-per-run", "12s"),
    )
    output = driver.end(1)
    records = {record.task: record for record in results_of(tmp_path / "results").values()}
    assert "took longer than 12 s" in records[moody.stem].error, output
    assert not records["plain"].error


@pytest.mark.slow
def test_a_run_whose_process_dies_is_tried_twice(cluster, moody, tmp_path):  # noqa: F811
    (tmp_path / "mood").write_text("dies")
    options = ("-m", "pixels", "-p", "knn", "-t", moody, "--trust-task-code")
    Driver(cluster, tmp_path / "results", *options).end(1)
    (record,) = results_of(tmp_path / "results").values()
    assert "in each of 2 attempts" in record.error
    assert len((tmp_path / "attempts").read_text().split()) == 2


@pytest.mark.slow
def test_an_extraction_that_runs_share_has_the_time_limit_too(cluster, moody, tmp_path):  # noqa: F811
    """Then each run extracts for itself, and fails at its own limit."""
    (tmp_path / "mood").write_text("sleeps")
    options = ("-m", "pixels", "-p", "knn", "-p", "linear", "-t", moody, "--trust-task-code")
    output = Driver(cluster, tmp_path / "results", *options, "--timeout-per-run", "10s").end(1)
    assert "extracting the features of pixels" in output and "took longer than 10 s" in output
    records = list(results_of(tmp_path / "results").values())
    assert len(records) == 2 and all("took longer than 10 s" in record.error for record in records), output


@pytest.mark.slow
def test_a_node_whose_disk_is_full_is_avoided(cluster, tmp_path):
    with small_disk(tmp_path / "disk", 12):
        full = cluster.add_node(num_cpus=1, env_vars={"MIXMIM_BENCH_CACHE": str(tmp_path / "disk")})
        try:
            models = [each for side in (16, 24, 40, 48) for each in ("-m", f"pixels@{side}")]
            output = Driver(cluster, tmp_path / "results", *models, *PLAN[4:6], "-p", "knn").end()
        finally:
            cluster.remove_node(full)
    assert len(results_of(tmp_path / "results")) == 4
    assert not any(record.error for record in results_of(tmp_path / "results").values()), output
    assert re.search(rf"{full.node_id[:6]}:   the task .* has failed: the disk of", output), output


def test_a_node_looks_for_versions_data_weights_and_folders(cluster, tmp_path):
    wanted = Selection(models=["mixmim-tiny"], tasks=["digits", "mnist5k"], protocols=["knn", "linear"])
    plan = [each.run for each in resolve(wanted, lambda _: None).planned]
    first, third, second, _ = sorted(plan, key=lambda run: run.task.name)
    changed = Run.from_json(second.to_json().replace(second.data.fingerprint, "0" * 16))
    lost = Run.from_json(third.to_json().replace(third.weights.path, str(tmp_path / "lost.pth")))
    setup = {"roots": DataRoots().to_json()}
    driver = {
        "package": package_digest(),
        "versions": {**provenance()["versions"], "timm": "0.1"},
        "in_results": str(tmp_path / "lost.pth"),
        "in_cache": str(tmp_path),
        "cache": "elsewhere",
        "features_bytes": 1e18,
    }
    runs = [each.to_json() for each in (first, changed, lost)]
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        look = ray.remote(node.look).options(num_cpus=0).remote
        found, older = ray.get([look(setup, driver, runs), look(setup, {**driver, "package": "0"}, runs)])
    finally:
        ray.shutdown()
    assert set(found.cannot) == {changed.run_id, lost.run_id}
    assert "its images differ" in found.cannot[changed.run_id]
    assert "no weights at" in found.cannot[lost.run_id]
    assert not found.shares_results and not found.shares_cache
    assert "and the driver 0.1" in found.remarks[0] and "GB are free" in found.remarks[1]
    assert len(older.cannot) == 3 and "another version of mixmim-bench" in older.cannot[first.run_id]


STARTED_HERE = """
import psutil, ray
from mixmim_bench.suite.cluster import connected

with connected("auto"):
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    sockets = [each for process in processes for each in process.net_connections()]
    commands = [process.cmdline() for process in processes]
ends = {end.ip.removeprefix("::ffff:") for each in sockets for end in (each.laddr, each.raddr) if end}
# Ray starts this program also for the dashboard that it does not have
boards = [command for command in commands if any(word.endswith("dashboard.py") for word in command)]
print(sorted(ends), [command for command in boards if "--disable-frontend" not in command])
"""


def test_a_cluster_that_is_started_here_needs_no_network_and_is_seen_by_nobody():
    """With loopback alone, where whatever Ray would send is refused, and no other cluster is found."""
    apart = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
    apart += ["sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("this user cannot have a network namespace")
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, since the path of a socket must be short
        done = subprocess.run(
            [*apart, sys.executable, "-W", "ignore", "-c", STARTED_HERE],
            env={**os.environ, "RAY_TMPDIR": folder},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['127.0.0.1'] []", done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ray", "127.0.0.1:1"), "--ray 127.0.0.1:1: nothing answers there"),
        (("--ray", "ray://127.0.0.1:1"), "Ray Client (ray://) is not supported"),
        (("--ray", "auto", "--devices", "cpu,cpu"), "leave out --device and --devices"),
        (("--gpus-per-run", "1"), "--gpus-per-run belongs to --ray"),
    ],
)
def test_wrong_options_are_refused(run, tmp_path, options, message):
    result = run("run", *PLAN, "--results", tmp_path, *options, code=2)
    assert message in result.output
