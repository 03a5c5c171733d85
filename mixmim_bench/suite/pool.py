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

from mixmim_bench.errors import BenchError
from mixmim_bench.progress import Lane, View
from mixmim_bench.suite.channel import Message
from mixmim_bench.suite.child import Child, Inbox
from mixmim_bench.suite.doing import Doer, Done
from mixmim_bench.suite.fleet import Fleet
from mixmim_bench.suite.queued import ATTEMPTS, Queue, Queued, TookTooLong, WorkerEnded
from mixmim_bench.suite.schema import record_of
from mixmim_bench.suite.shards import Load
from mixmim_bench.suite.worker import setup_of
from mixmim_bench.training.checkpoints import Terminated, noting_sigterm

LOOK_S = 0.2  # between looks at processes and time limits


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
        self.fleet, self.doer, self.view = fleet, doer, view
        self._loads = {load.run_id: load for load in loads}
        self._inbox: Inbox = queue.SimpleQueue()
        self._children: list[Child] = []
        self._queue = Queue(doer, view, on_done)
        self._extracted: set[str] = set()  # keys of features that are cached by now

    def do(self, queued: Sequence[Queued]) -> None:
        """Do all runs; whatever ends this ends the processes too. Raises BenchError."""
        self._queue.fill(queued)
        self._queue.record_impossible()
        with noting_sigterm() as terminated:
            try:
                count = min(len(self.fleet.devices), len(self._queue.left))
                lanes = map(self.view.lane, self.fleet.names())
                for device, lane in list(zip(self.fleet.devices, lanes, strict=True))[:count]:
                    self._children.append(self._start(device, lane))
                while self._queue.left or any(child.queued for child in self._children):
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
            if child.ready and child.queued is None and not child.timed_out:
                each = self._choose(child)
                if each is None:
                    continue
                self._queue.left.remove(each)
                child.queued, child.network = each, self._load(each).network
                child.lane.say(self._queue.headline(each))
                child.send(job=each.job.to_json(), wait=each.wait)

    def _choose(self, child: Child) -> Queued | None:
        """Choose a run whose features nobody is extracting: of the network at hand, else of an unused one."""
        extracting = {key for other in self._busy() for key in self._load(other).shared} - self._extracted
        used = {other.network for other in self._children if other.queued and other is not child}
        free = [each for each in self._queue.left if not extracting & set(self._load(each).shared)]
        if any(not each.wait for each in self._queue.left):  # those that other suites do come last
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
            self._queue.finish(child.release(), None, child.lane)
        elif "done" in message:
            each = child.release()
            self._extracted |= set(self._load(each).shared)
            record = record_of(json.loads(message["done"]))
            self._queue.finish(each, Done(record, message["new"]), child.lane)
        elif "unusable" in message:
            self._without(child, message["unusable"])
        elif "fatal" in message:
            raise BenchError(message["fatal"])
        else:
            child.shown.show(message)

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
            self._queue.fail(each, TookTooLong(self.fleet.timeout_s), child.lane)
        elif each is not None:
            attempts = each.attempts + 1
            child.lane.say(f"  the process of {each.job.run.label} has ended: {child.reason()}")
            if attempts < ATTEMPTS:
                self._queue.left.append(dataclasses.replace(each, attempts=attempts))
            else:
                reason = f"its process has ended in each of {attempts} attempts: {child.reason()}"
                self._queue.fail(each, WorkerEnded(reason), child.lane)
        self._children[self._children.index(child)] = self._start(child.device, child.lane)

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
