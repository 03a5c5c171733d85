"""Do the runs of a plan in worker processes, one per device, within a time limit.

The driver alone plans and shows progress; the workers claim, compute and save (`doing`). Runs that need the
same features wait until these are extracted, while other runs are done; a worker that ends is replaced.
"""

import dataclasses
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mixmim_bench.errors import BenchError
from mixmim_bench.progress import Lane, View
from mixmim_bench.suite.channel import Message
from mixmim_bench.suite.child import Child, Inbox
from mixmim_bench.suite.doing import Doer, Done, Job, summary
from mixmim_bench.suite.estimate import Estimate
from mixmim_bench.suite.fleet import Fleet
from mixmim_bench.suite.schema import record_of
from mixmim_bench.suite.shards import Load
from mixmim_bench.suite.worker import setup_of
from mixmim_bench.training.checkpoints import Terminated, noting_sigterm

ATTEMPTS = 2  # at a run whose process ends
LOOK_S = 0.2  # between looks at processes and time limits


class TookTooLong(BenchError):
    """A run has taken longer than its time limit."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(
            f"took longer than {in_words(limit_s)} (--timeout-per-run); its checkpoints and extracted "
            "features remain: rerun the command to continue from them"
        )


class WorkerEnded(BenchError):
    """The process that did a run has ended."""


@dataclass(frozen=True)
class Queued:
    """A run that is still to be done.

    Attributes:
        place: in the plan, from 1.
        estimate: of the run.
        job: what a process needs to do it.
        wait: whether another process, of another suite, was doing it.
        attempts: whose processes have ended.
    """

    place: int
    estimate: Estimate
    job: Job
    wait: bool = False
    attempts: int = 0

    def headline(self, total: int) -> str:
        """Name the run, with its place in the plan."""
        run = self.job.run
        return f"[{self.place}/{total}] {run.label}{' (random init)' if run.weights.random else ''}"


class Pool:
    """The worker processes of a suite.

    Args:
        fleet: their devices, settings and time limit.
        doer: of the driver; records runs that cannot be done.
        loads: what the runs share.
        view: shows progress.
        on_done: receives the outcome of each run.
    """

    def __init__(
        self,
        fleet: Fleet,
        doer: Doer,
        loads: Sequence[Load],
        view: View,
        on_done: Callable[[Done], None],
    ) -> None:
        self.fleet, self.doer, self.view, self.on_done = fleet, doer, view, on_done
        self._loads = {load.run_id: load for load in loads}
        self._inbox: Inbox = queue.SimpleQueue()
        self._children: list[Child] = []
        self._left: list[Queued] = []
        self._total = 0
        self._extracted: set[str] = set()  # keys of features that are cached by now

    def do(self, queued: Sequence[Queued]) -> None:
        """Do all runs; whatever ends this ends the processes too. Raises BenchError."""
        self._left, self._total = list(queued), len(queued)
        lane = self.view.lane()
        for each in [each for each in queued if each.job.error is not None]:
            self._left.remove(each)
            lane.say(each.headline(self._total))
            self._finish(each, self.doer.do(each.job, wait=True), lane)
        with noting_sigterm() as terminated:
            try:
                count = min(len(self.fleet.devices), len(self._left))
                lanes = map(self.view.lane, self.fleet.names())
                for device, lane in list(zip(self.fleet.devices, lanes, strict=True))[:count]:
                    self._children.append(self._start(device, lane))
                while self._left or any(child.queued for child in self._children):
                    self._assign()
                    self._receive()
                    self._look()
                    if terminated():
                        raise Terminated
            finally:
                self._end()

    def _start(self, device: str, lane: Lane) -> Child:
        settings, split = {**self.fleet.settings, "precision": self.doer.machine.precision}, 0
        if len(self.fleet.devices) > 1 and settings.get("threads") is None:
            settings["threads"] = split = self.doer.machine.threads  # which are divided already
        setup = setup_of(self.doer, device, settings, self.fleet.roots)
        return Child(device, setup, split, lane, self._inbox)

    # -- jobs -----------------------------------------------------------------------------------------

    def _assign(self) -> None:
        """Give each idle process a run."""
        for child in self._children:
            if child.ready and child.queued is None:
                each = self._choose(child)
                if each is None:
                    continue
                self._left.remove(each)
                child.queued, child.network = each, self._load(each).network
                child.lane.say(each.headline(self._total))
                child.send(job=each.job.to_json(), wait=each.wait)

    def _choose(self, child: Child) -> Queued | None:
        """Choose a run whose features nobody is extracting: of the network at hand, else of an unused one."""
        extracting = {key for other in self._busy() for key in self._load(other).shared} - self._extracted
        used = {other.network for other in self._children if other.queued and other is not child}
        free = [each for each in self._left if not extracting & set(self._load(each).shared)]
        if any(not each.wait for each in self._left):  # those that other suites do come last
            free = [each for each in free if not each.wait]

        def rank(each: Queued) -> tuple[bool, bool]:
            network = self._load(each).network
            return network != child.network, network in used

        return min(free, key=rank, default=None)

    def _busy(self) -> list[Queued]:
        return [child.queued for child in self._children if child.queued is not None]

    def _load(self, each: Queued) -> Load:
        return self._loads[each.job.run.run_id]

    # -- messages -------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Handle the messages that are there, waiting a little for the first."""
        with suppress(queue.Empty):
            self._handle(*self._inbox.get(timeout=LOOK_S))
            while True:
                self._handle(*self._inbox.get_nowait())

    def _handle(self, child: Child, message: Message | None) -> None:
        if child not in self._children:
            return
        if message is None:
            self._bury(child)
        elif "ready" in message:
            child.ready = True
        elif "started" in message:
            limit = self.fleet.timeout_s
            child.deadline = time.monotonic() + limit if limit else float("inf")
        elif "claimed" in message:
            self._finish(child.release(), None, child.lane)
        elif "done" in message:
            each = child.release()
            self._extracted |= set(self._load(each).shared)
            record = record_of(json.loads(message["done"]))
            self._finish(each, Done(record, message["new"]), child.lane)
        elif "unusable" in message:
            self._without(child, message["unusable"])
        elif "fatal" in message:
            raise BenchError(message["fatal"])
        else:
            child.shown.show(message)

    def _finish(self, each: Queued, done: Done | None, lane: Lane) -> None:
        """Take the record of a run; None if a process of another suite does it."""
        if done is None:
            self._left.append(dataclasses.replace(each, wait=True))
            return
        lane.finish_run(each.estimate.work)
        self.on_done(done)

    # -- processes that end ---------------------------------------------------------------------------

    def _look(self) -> None:
        """End processes whose run takes too long, and find those that have ended."""
        for child in self._children:
            if time.monotonic() > child.deadline and not child.timed_out:
                child.timed_out = True
                threading.Thread(target=child.end, daemon=True).start()
            elif child.is_over():
                self._inbox.put((child, None))

    def _bury(self, child: Child) -> None:
        """Record or repeat the run of a process that has ended, and start another one in its place."""
        child.kill()
        each = child.release() if child.queued is not None else None
        if each is None and not child.ready:
            self._without(child, child.reason())
            return
        if each is not None and child.timed_out:
            self._fail(child, each, TookTooLong(self.fleet.timeout_s))
        elif each is not None:
            attempts = each.attempts + 1
            child.lane.say(f"  the process of {each.job.run.label} has ended: {child.reason()}")
            if attempts < ATTEMPTS:
                self._left.append(dataclasses.replace(each, attempts=attempts))
            else:
                self._fail(
                    child,
                    each,
                    WorkerEnded(f"its process has ended in each of {attempts} attempts: {child.reason()}"),
                )
        self._children[self._children.index(child)] = self._start(child.device, child.lane)

    def _fail(self, child: Child, each: Queued, error: BenchError) -> None:
        done = self.doer.fail(each.job, error)
        if done is not None:
            child.lane.say(f"  {summary(done.record)}")
        self._finish(each, done, child.lane)

    def _without(self, child: Child, reason: str) -> None:
        """Go on without a process that cannot do runs; raises BenchError if it was the last one."""
        self._children.remove(child)
        child.end(grace_s=0)
        reason = f"device {child.device} cannot be used: {reason}"
        if not self._children:
            raise BenchError(reason)
        child.lane.say(reason)

    def _end(self) -> None:
        """End all processes at the same time."""
        threads = [threading.Thread(target=child.end) for child in self._children]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for child in self._children:
            child.shown.clear()


def in_words(seconds: float) -> str:
    """Format a time limit in its largest unit."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
