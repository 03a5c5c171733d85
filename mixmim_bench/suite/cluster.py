"""Do the runs of a plan on the nodes of a Ray cluster.

Each run is a Ray task with its needs, and so is each extraction of features that several runs share, which
goes before them. The driver alone plans, claims, saves and shows progress. A task whose node or process dies
is tried again, on another node if there is one, `ATTEMPTS` times in all.
"""

import dataclasses
import os
import shutil
import socket
import time
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
from mixmim_bench.suite.channel import Message, Shown
from mixmim_bench.suite.doing import Doer, Done, summary
from mixmim_bench.suite.fleet import LOCAL, Cluster
from mixmim_bench.suite.nodes import NODE_LABEL, Nodes, first_line, reason_of
from mixmim_bench.suite.pool import ATTEMPTS, Queued, TookTooLong, WorkerEnded
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.shards import Load
from mixmim_bench.suite.worker import setup_of

LOOK_S = 0.3  # between looks at tasks
NODES_S = 3.0  # between looks at the nodes, and at runs that other drivers do
ANSWER_S = 10.0  # that the head may take to answer


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
        deadline: of the run, in the time of `time.monotonic`.
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
        self.cluster, self.doer, self.view, self.on_done = cluster, doer, view, on_done
        self._loads = {load.run_id: load for load in loads}
        self._nodes = Nodes(cluster, view)
        self._flights: dict[Any, Flight] = {}
        self._left: list[Queued] = []
        self._extracted: dict[str, str] = {}  # key -> node that did it
        self._total = 0
        self._again = False  # whether it is time to try the runs that other drivers do
        self._looked = 0.0
        self._board: Any = None
        self._costs = list(doer.store.read_costs())  # that are known

    def do(self, queued: Sequence[Queued]) -> None:
        """Do all runs; whatever ends this ends their tasks too. Raises BenchError."""
        self._left, self._total = list(queued), len(queued)
        for each in [each for each in queued if each.job.error is not None]:
            self._left.remove(each)
            self._finish(each, self.doer.do(each.job, wait=True), Shown(self.view.lane()))
        if not self._left:
            return
        with connected(self.cluster.address), self._driver():
            try:
                self._ask_nodes(wait=True)
                self._nodes.check_some([each.job.run.run_id for each in self._left])
                while self._left or self._flights:
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
        self._clear_all()
        self._about: Message = {
            **{name: str(mark) for name, mark in marks.items()},
            "cache": str(cache_folder()),
            "package": package_digest(),
            "versions": provenance()["versions"],
            "features_bytes": sum(each.estimate.features_bytes for each in self._left),
        }
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.this_node(), soft=False)
        self._board = ray.remote(node.Board).options(num_cpus=0, scheduling_strategy=here).remote()
        try:
            yield
        finally:
            for mark in marks.values():
                mark.unlink(missing_ok=True)
            with suppress(OSError):  # what another driver waits for
                self._incoming.rmdir()

    def _ask_nodes(self, wait: bool = False) -> None:
        self._looked = time.monotonic()
        runs = [each.job.run for each in self._left + self._in_flight()]
        self._nodes.look(self._setup, self._about, runs, wait)

    def _able(self, each: Queued) -> list[str]:
        return self._nodes.able(each.job.run.run_id)

    # -- tasks ----------------------------------------------------------------------------------------

    def _submit(self) -> None:
        """Give Ray each run whose features are extracted, or that extracts alone, and shared extractions."""
        again, self._again = self._again, False
        for each in list(self._left):
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
                self._left[self._left.index(each)] = dataclasses.replace(each, wait=True)
                continue
            self._left.remove(each)
            self._clear(each.job.run.run_id)
            if self.doer.finished_meanwhile(each.job.run):
                claim.close()
                self._finish(each, self.doer.do(each.job, wait=True), Shown(self.view.lane()))
                continue
            self._send(each, nodes, "", claim)

    def _shared(self, each: Queued) -> str:
        """Return a key of the features that a run shares with others that are not finished; '' if none."""
        keys = self._features(each)
        others = [other for other in self._left + self._in_flight() if other is not each]
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
                    flight.shown.lane.say(flight.queued.headline(self._total))
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
        try:
            for name, content in delivered.files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            record = self.doer.store.take_over(RunStore(folder), each.job.run.run_id)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._costs = list(self.doer.store.read_costs())
        self._finish(each, Done(record, new=True), flight.shown)

    def _clear(self, run_id: str) -> None:
        """Remove what a task that was ended, of this driver or an earlier one, has left of a claimed run."""
        for left in self._incoming.glob(f"{run_id}-*"):
            shutil.rmtree(left, ignore_errors=True)

    def _clear_all(self) -> None:
        """Remove what drivers that were killed have left, unless another driver does the run."""
        for run_id in {path.name.partition("-")[0] for path in self._incoming.iterdir() if path.is_dir()}:
            with self.doer.store.claim(run_id) as is_mine:
                if is_mine:
                    self._clear(run_id)

    def _failed(self, flight: Flight, error: exceptions.RayError) -> None:
        """Repeat or record the run of a task that has ended without a result."""
        each, run_id = flight.queued, flight.queued.job.run.run_id
        if flight.where:
            self._nodes.avoid(run_id, flight.where)
        if flight.timed_out:
            self._give_up(flight, TookTooLong(self.cluster.timeout_s))
            return
        if isinstance(error, exceptions.TaskUnschedulableError):  # its nodes have died before it began
            self._looked = 0.0
            if not flight.key:
                self._left.append(each)
            return
        attempts, reason = each.attempts + 1, reason_of(error)
        what = "extracting the features of" if flight.key else "the task of"
        flight.shown.lane.say(f"  {what} {each.job.run.label} has failed: {reason}")
        if flight.key and attempts >= ATTEMPTS:  # each run extracts for itself, and says what is wrong
            self._extracted[flight.key] = ""
        elif flight.key and each in self._left:  # unless no node is left for it
            self._left[self._left.index(each)] = dataclasses.replace(each, attempts=attempts)
        elif flight.key:
            return
        elif attempts < ATTEMPTS:
            self._left.append(dataclasses.replace(each, attempts=attempts))
        else:
            self._give_up(
                flight, WorkerEnded(f"its task has failed in each of {attempts} attempts: {reason}")
            )

    def _give_up(self, flight: Flight, error: BenchError) -> None:
        done = self.doer.fail(flight.queued.job, error)
        if done is not None:
            flight.shown.lane.say(f"  {summary(done.record)}")
        self._finish(flight.queued, done, flight.shown)

    def _finish(self, each: Queued, done: Done | None, shown: Shown) -> None:
        """Pass on the record of a run; None if a process of another suite does it."""
        if done is None:
            self._left.append(dataclasses.replace(each, wait=True))
            return
        shown.lane.finish_run(each.estimate.work)
        self.on_done(done)

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
        for each in [each for each in self._left if not self._able(each)]:
            self._left.remove(each)
            error = BenchError(f"no node is left that can do it: {self._nodes.why_not(each.job.run.run_id)}")
            self._finish(each, self.doer.fail(each.job, error), Shown(self.view.lane()))


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
