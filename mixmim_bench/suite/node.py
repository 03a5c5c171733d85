"""What a Ray node does for the driver of a suite: looks at itself, extracts features, does runs.

Functions are sent by name, so a node needs this package. Progress goes through an actor beside the driver,
results go by file if the nodes share the results folder, else with the task.
"""

import importlib.util
import shutil
import socket
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from mixmim_bench.cache import cache_folder, free_bytes
from mixmim_bench.data.dataset import open_task
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import BenchError, show_warnings
from mixmim_bench.provenance import package_digest, provenance
from mixmim_bench.specs import OPENVINO, Run
from mixmim_bench.suite.board import ToBoard
from mixmim_bench.suite.channel import Message
from mixmim_bench.suite.doing import Job
from mixmim_bench.suite.execute import open_run
from mixmim_bench.suite.worker import Remote, doer_of
from mixmim_bench.weights.download import file_sha256

FULL = 2**26  # free bytes, with fewer of which a failure is that of the node
INCOMING = ".incoming"  # in the results folder: results that the driver has not taken over yet


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What a node has found out about itself.

    Attributes:
        node: its id.
        host: its name.
        cannot: run id -> why it cannot do the run.
        remarks: versions other than the driver's, and so on.
        shares_results: whether it has the results folder of the driver.
        shares_cache: whether it has the cache folder of the driver.
    """

    node: str
    host: str
    cannot: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    shares_results: bool = False
    shares_cache: bool = False


@dataclass(frozen=True)
class Delivered:
    """A folder with the results of one run: shared with the driver, or as files by relative path."""

    folder: str
    files: Mapping[str, bytes] = field(default_factory=dict)


def this_node() -> str:
    """Return the id of the node that this process is on."""
    return str(ray.get_runtime_context().get_node_id())


def look(setup: Message, driver: Message, runs: Iterable[str]) -> Looked:
    """Check a node for the runs of a plan; computes nothing.

    Args:
        setup: as for a worker.
        driver: versions of the driver, and files in its results and cache folders by which shared ones are
            recognised.
        runs: as JSON.
    """
    cannot: dict[str, str] = {}
    if package_digest() != driver["package"]:
        reason = f"it has another version of mixmim-bench ({provenance()['mixmim_bench']})"
        cannot = {Run.from_json(text).run_id: reason for text in runs}
    else:
        roots = DataRoots.from_json(setup["roots"])
        data: dict[Any, str] = {}
        for run in map(Run.from_json, runs):
            if run.task.key not in data:
                data[run.task.key] = _lacks_data(run, roots)
            reason = data[run.task.key] or _lacks_weights(run) or _lacks_engine(run)
            if reason:
                cannot[run.run_id] = reason
    return Looked(
        node=this_node(),
        host=socket.gethostname(),
        cannot=cannot,
        remarks=tuple(_remarks(driver)),
        shares_results=Path(driver["in_results"]).is_file(),
        shares_cache=Path(driver["in_cache"]).is_file() and str(cache_folder()) == driver["cache"],
    )


def _lacks_data(run: Run, roots: DataRoots) -> str:
    try:
        found = open_task(run.task, roots).source.fingerprint
    except BenchError as error:
        return str(error)
    if found != run.data.fingerprint:
        return f"{run.task.name}: its images differ (fingerprint {found}, not {run.data.fingerprint})"
    return ""


def _lacks_weights(run: Run) -> str:
    path = run.weights.path
    if not path:
        return ""
    if not Path(path).is_file():
        return f"{run.model.name}: no weights at {path}"
    if file_sha256(Path(path)) != run.weights.sha256:
        return f"{run.model.name}: other weights at {path}"
    return ""


def _lacks_engine(run: Run) -> str:
    if run.engine == OPENVINO and importlib.util.find_spec("openvino") is None:
        return "it has no OpenVINO, which the driver chose (--engine torch does without)"
    return ""


def _remarks(driver: Message) -> Iterable[str]:
    own, theirs = provenance()["versions"], driver["versions"]
    for name in own:
        if own[name] != theirs.get(name):
            yield f"{name} {own[name]}, and the driver {theirs.get(name)}"
    free = free_bytes(cache_folder())
    if free < driver["features_bytes"]:
        needed = driver["features_bytes"] / 1e9
        yield f"{free / 1e9:.1f} GB are free for features, which take up to {needed:.1f} GB"


def extract(setup: Message, job: Message, board: Any) -> None:
    """Extract the features of a run into the cache; raises BenchError."""
    each = Job.from_json(job)
    sender = ToBoard(board, each.run.run_id)
    sender.send(node=this_node())
    sender.send(started=True)
    doer = doer_of(setup, Remote(sender))
    data = doer.data_of(each.run)
    bench = open_run(each.run, data, doer.machine, doer.view, gmacs=each.gmacs)
    bench.extract_all(data.splits.values())


def do(setup: Message, job: Message, board: Any, shared: bool) -> Delivered:
    """Do a run, and deliver its record with everything beside it; raises BenchError if it cannot be saved.

    Args:
        setup: as for a worker; its results folder is that of the driver.
        job: the run.
        board: receives progress.
        shared: whether the driver sees the results folder of this node.
    """
    each = Job.from_json(job)
    sender = ToBoard(board, each.run.run_id)
    sender.send(node=this_node())
    within = Path(setup["results"]) / INCOMING if shared else None
    if within is not None:
        within.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{each.run.run_id}-", dir=within))
    remote = Remote(sender)
    show_warnings(remote.say)
    try:
        doer = doer_of({**setup, "results": str(folder)}, remote)
        doer.store.prepare()
        doer.measure_costs([each.run], setup["costs"])
        done = doer.do(each, started=lambda: sender.send(started=True))
        if done is not None and done.record.error and free_bytes(cache_folder()) < FULL:
            raise BenchError(f"the disk of {cache_folder()} is full: {done.record.error}")
        sender.flush()
        if shared:
            return Delivered(str(folder))
        files = [path for path in folder.rglob("*") if path.is_file()]
        return Delivered("", {str(path.relative_to(folder)): path.read_bytes() for path in files})
    except BaseException:
        shared = False  # nobody will read it
        raise
    finally:
        if not shared:
            shutil.rmtree(folder, ignore_errors=True)
