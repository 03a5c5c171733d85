"""Do the runs of a plan on the nodes of a Ray cluster.

Each run is a Ray task with its needs, and so is each extraction of features that several runs share, which
goes before them. The driver alone plans, claims, saves and shows progress. A task whose process or node dies
is tried again, on another node if there is one, `ATTEMPTS` times in all, or `MOVES` times if its nodes die.
"""

import dataclasses
import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import exceptions

from mixmim_bench.atomic import write_whole
from mixmim_bench.cache import cache_folder
from mixmim_bench.errors import BenchError
from mixmim_bench.progress import View
from mixmim_bench.provenance import package_digest, provenance
from mixmim_bench.suite import node
from mixmim_bench.suite.board import Board
from mixmim_bench.suite.channel import Message, Shown
from mixmim_bench.suite.doing import Doer, Done
from mixmim_bench.suite.fleet import LOCAL, Cluster
from mixmim_bench.suite.nodes import NODE_LABEL, Nodes, first_line, reason_of
from mixmim_bench.suite.queued import ATTEMPTS, Queue, Queued, TookTooLong, WorkerEnded
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.shards import Load
from mixmim_bench.suite.worker import setup_of

LOOK_S = 0.3  # between looks at tasks
NODES_S = 3.0  # between looks at the nodes, and at runs that other drivers do
ANSWER_S = 10.0  # that the head may take to answer
MOVES = 5  # of a run whose nodes die


@dataclass
class Flight:
    """A task that Ray has.

    Attributes:
        ref: of its result.
        queued: the run; of an extraction, the first one that needs the features.
        key: of the features that it extracts; '' for a run.
        claim: released when the run is saved.
        shown: its progress.
        where: the node that it started on.
        deadline: in the time of `time.monotonic`.
    """

    ref: Any
    queued: Queued
    key: str
    claim: ExitStack
    shown: Shown
    where: str = ""
    deadline: float = float("inf")
    timed_out: bool = False


class RayPool:
    """The nodes of a cluster, and the tasks that they have.

    Args:
        cluster: its address, and what runs need.
        doer: of the driver; saves results, and records runs that cannot be done.
        loads: what the runs share.
        view: shows progress.
        on_done: receives the outcome of each run.
    """

    def __init__(
        self,
        cluster: Cluster,
        doer: Doer,
        loads: Sequence[Load],
        view: View,
        on_done: Callable[[Done], None],
    ) -> None:
        self.cluster, self.doer, self.view = cluster, doer, view
        self._loads = {load.run_id: load for load in loads}
        self._nodes = Nodes(cluster, view)
        self._flights: dict[Any, Flight] = {}
        self._queue = Queue(doer, view, on_done)
        self._extracted: dict[str, str] = {}  # key -> node that did it; '' if each run does it for itself
        self._failures: Counter[str] = Counter()  # of the extraction of a key
        self._again = False  # whether it is time to try the runs that other drivers do
        self._looked = 0.0
        self._board: Any = None
        self._costs = list(doer.store.read_costs())  # that are known

    def do(self, queued: Sequence[Queued]) -> None:
        """Do all runs; whatever ends this ends their tasks too. Raises BenchError."""
        self._queue.fill(queued)
        self._queue.record_impossible()
        if not self._queue.left:
            return
        with connected(self.cluster.address), self._driver():
            try:
                self._ask_nodes(wait=True)
                self._nodes.check_some([each.job.run.run_id for each in self._queue.left])
                while self._queue.left or self._flights:
                    self._submit()
                    self._receive()
                    self._look()
            finally:
                for flight in self._flights.values():
                    ray.cancel(flight.ref, force=True)
                    flight.shown.clear()
                    flight.claim.close()

    @contextmanager
    def _driver(self) -> Iterator[None]:
        """Prepare what nodes are sent, and files by which they recognise shared folders."""
        settings = {**self.cluster.settings, "precision": self.doer.machine.precision}
        self._setup = setup_of(self.doer, "auto", settings, self.cluster.roots)
        self._setup["results"] = str(self.doer.store.folder.absolute())
        self._incoming = self.doer.store.folder.absolute() / node.INCOMING
        token = f"driver-{os.getpid()}-{time.time_ns()}"
        marks = {"in_results": self._incoming / token, "in_cache": cache_folder().absolute() / token}
        with self.doer.store.writing():
            for mark in marks.values():
                mark.parent.mkdir(parents=True, exist_ok=True)
                write_whole(mark, b"")
        for run_id in {path.name.partition("-")[0] for path in self._incoming.iterdir() if path.is_dir()}:
            with self.doer.store.claim(run_id) as is_mine:  # or another driver does it
                if is_mine:
                    self._take_left(run_id)
        self._about: Message = {
            **{name: str(mark) for name, mark in marks.items()},
            "cache": str(cache_folder()),
            "package": package_digest(),
            "versions": provenance()["versions"],
            "features_bytes": sum(each.estimate.features_bytes for each in self._queue.left),
        }
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.this_node(), soft=False)
        self._board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
        try:
            yield
        finally:
            for mark in marks.values():
                mark.unlink(missing_ok=True)
            with suppress(OSError):  # what another driver waits for
                self._incoming.rmdir()

    def _ask_nodes(self, wait: bool = False) -> None:
        self._looked = time.monotonic()
        runs = [each.job.run for each in self._queue.left + self._in_flight()]
        self._nodes.look(self._setup, self._about, runs, wait)

    def _able(self, each: Queued) -> list[str]:
        return self._nodes.able(each.job.run.run_id)

    # -- tasks ----------------------------------------------------------------------------------------

    def _submit(self) -> None:
        """Give Ray each run whose features are extracted, or that extracts alone, and shared extractions."""
        again, self._again = self._again, False
        for each in list(self._queue.left):
            if each.wait and not again:
                continue
            nodes = self._able(each)
            if not nodes:
                continue
            key = self._shared(each)
            if key and key not in self._extracted:
                if not any(flight.key == key for flight in self._flights.values()):
                    self._send(each, nodes, key, ExitStack())
                continue
            claim = ExitStack()
            if not claim.enter_context(self.doer.store.claim(each.job.run.run_id)):
                self._queue.left[self._queue.left.index(each)] = dataclasses.replace(each, wait=True)
                continue
            self._queue.left.remove(each)
            self._take_left(each.job.run.run_id)
            if self.doer.finished_meanwhile(each.job.run):
                claim.close()
                self._queue.finish_here(each)
                continue
            self._send(each, nodes, "", claim)

    def _shared(self, each: Queued) -> str:
        """Return a key of the features that a run shares with others that are not finished; '' if none."""
        keys = self._features(each)
        others = [other for other in self._queue.left + self._in_flight() if other is not each]
        return " ".join(sorted(keys)) if any(keys & self._features(other) for other in others) else ""

    def _features(self, each: Queued) -> set[str]:
        """Return keys of the stored features that a run reads."""
        trains = each.estimate.planned.protocol.trains  # on features that are augmented, and not stored
        return set() if trains else set(self._loads[each.job.run.run_id].shared)

    def _send(self, each: Queued, nodes: Sequence[str], key: str, claim: ExitStack) -> None:
        near = self._extracted.get(self._shared(each), "")
        if near in nodes and not all(self._nodes.found[name].shares_cache for name in nodes):
            nodes = [near]
        options = {
            **self._nodes.needs(each, nodes),
            "max_retries": 0,
            "label_selector": {NODE_LABEL: f"in({','.join(nodes)})"},
        }
        ref: Any
        if key:
            ref = (
                ray.remote(node.extract)
                .options(**options)
                .remote(self._setup, each.job.to_json(), self._board)
            )
        else:
            shared = all(self._nodes.found[name].shares_results for name in nodes)
            if self.doer.save_weights and not shared:
                raise BenchError("--save-weights needs a results folder that all nodes share")
            ref = (
                ray.remote(node.do)
                .options(**options)
                .remote({**self._setup, "costs": self._costs}, each.job.to_json(), self._board, shared)
            )
        self._flights[ref] = Flight(ref, each, key, claim, Shown(self.view.lane()))

    def _in_flight(self) -> list[Queued]:
        return [flight.queued for flight in self._flights.values() if not flight.key]

    def _receive(self) -> None:
        """Show the progress of tasks, and take the results of those that have ended."""
        if not self._flights:
            time.sleep(LOOK_S)
            return
        ended, _ = ray.wait(list(self._flights), num_returns=1, timeout=LOOK_S, fetch_local=False)
        self._show()
        for ref in ended:
            flight = self._flights.pop(ref)
            flight.shown.clear()
            with flight.claim:
                try:
                    self._take(flight, ray.get(ref))
                except exceptions.RayError as error:
                    failure = error
                else:
                    continue
            self._failed(flight, failure)

    def _show(self) -> None:
        of_run = {flight.queued.job.run.run_id: flight for flight in self._flights.values()}
        for run_id, message in ray.get(self._board.take.remote()):
            flight = of_run.get(run_id)
            if flight is None:
                continue
            if "node" in message:
                flight.where = message["node"]
                flight.shown = Shown(self.view.lane(self._nodes.name(flight.where)))
                if not flight.key:
                    flight.shown.lane.say(self._queue.headline(flight.queued))
            elif "started" in message:
                limit = self.cluster.timeout_s
                flight.deadline = time.monotonic() + limit if limit else float("inf")
            else:
                flight.shown.show(message)

    def _take(self, flight: Flight, delivered: node.Delivered | None) -> None:
        """Save what a task has delivered."""
        if delivered is None:
            self._extracted[flight.key] = flight.where
            return
        each = flight.queued
        folder = Path(delivered.folder or self._incoming / f"{each.job.run.run_id}-taken")
        for name, content in delivered.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        record = self.doer.store.take_over(RunStore(folder), each.job.run.run_id)
        shutil.rmtree(folder, ignore_errors=True)
        self._costs = list(self.doer.store.read_costs())
        self._queue.finish(each, Done(record, new=True), flight.shown.lane)

    def _take_left(self, run_id: str) -> None:
        """Save what a driver that has ended could not save of a claimed run, and remove what it has left."""
        for folder in self._incoming.glob(f"{run_id}-*"):
            left = RunStore(folder)
            record = left.result(run_id)
            if record is not None and not record.error and self.doer.store.result(run_id) is None:
                self.doer.store.take_over(left, run_id)
            shutil.rmtree(folder, ignore_errors=True)

    def _failed(self, flight: Flight, error: exceptions.RayError) -> None:
        """Repeat a task that has ended without a result, on another node if there is one, or give it up."""
        if flight.where:
            self._nodes.avoid(flight.queued.job.run.run_id, flight.where)
        if isinstance(error, exceptions.TaskUnschedulableError):  # its nodes have died before it began
            self._looked = 0.0
            if not flight.key:
                self._queue.left.append(flight.queued)
            return
        node_died = isinstance(error, exceptions.NodeDiedError)
        failure = TookTooLong(self.cluster.timeout_s) if flight.timed_out else WorkerEnded(reason_of(error))
        if flight.key:
            self._extraction_failed(flight, failure, node_died)
        else:
            self._run_failed(flight, failure, node_died)

    def _extraction_failed(self, flight: Flight, failure: BenchError, node_died: bool) -> None:
        """Let each run extract for itself, and say what is wrong, after several failures."""
        label = flight.queued.job.run.label
        flight.shown.lane.say(f"  extracting the features of {label} has failed: {failure}")
        self._failures[flight.key] += 1
        if flight.timed_out or self._failures[flight.key] >= (MOVES if node_died else ATTEMPTS):
            self._extracted[flight.key] = ""

    def _run_failed(self, flight: Flight, failure: BenchError, node_died: bool) -> None:
        """Repeat a run, or record that it has failed after several attempts."""
        each, lane = flight.queued, flight.shown.lane
        if not flight.timed_out:
            lane.say(f"  the task of {each.job.run.label} has failed: {failure}")
            each = dataclasses.replace(
                each, attempts=each.attempts + (not node_died), moves=each.moves + node_died
            )
            if each.attempts < ATTEMPTS and each.moves < MOVES:
                self._queue.left.append(each)
                return
            count = each.attempts + each.moves
            failure = WorkerEnded(f"its task has failed in each of {count} attempts: {failure}")
        self._queue.fail(each, failure, lane)

    def _look(self) -> None:
        """End runs that take too long, and those that no node is left for."""
        for flight in self._flights.values():
            if time.monotonic() > flight.deadline and not flight.timed_out:
                flight.timed_out = True
                ray.cancel(flight.ref, force=True)
        if time.monotonic() < self._looked + NODES_S:
            return
        self._ask_nodes()
        self._again = True
        for flight in list(self._flights.values()):
            if not flight.where and not self._able(flight.queued):
                ray.cancel(flight.ref, force=True)
        if self._nodes.asking:  # some may be able
            return
        for each in [each for each in self._queue.left if not self._able(each)]:
            self._queue.left.remove(each)
            error = BenchError(f"no node is left that can do it: {self._nodes.why_not(each.job.run.run_id)}")
            lane = self.view.lane()
            lane.say(self._queue.headline(each))
            self._queue.fail(each, error, lane)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to a Ray cluster, or start one of this machine alone that only it can reach.

    Ray's usage statistics and dashboard are off in a cluster that is started here. Raises BenchError.
    """
    if address != LOCAL:
        _check_address(address)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address != LOCAL:
            ray.init(address=address, **settings)
        else:
            try:
                ray.init(address="auto", **settings)
            except ConnectionError:  # there is none
                ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BenchError(f"--ray {address}: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Check that something listens at HOST:PORT, since Ray would try for minutes; raises BenchError."""
    host, _, port = address.rpartition(":")
    if "//" in address or not host or not port.isdecimal():
        raise BenchError(
            f"--ray {address}: must be {LOCAL}, or HOST:PORT of the head of a cluster that this machine "
            "belongs to (`ray start --address=HOST:PORT` there); Ray Client (ray://) is not supported"
        )
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise BenchError(f"--ray {address}: nothing answers there ({reason})") from error
