"""The runs that are still to be done, here or by a pool of processes or nodes, and how each of them ends."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mixmim_bench.errors import BenchError
from mixmim_bench.progress import Lane, View
from mixmim_bench.suite.doing import Doer, Done, Job, summary
from mixmim_bench.suite.estimate import Estimate

ATTEMPTS = 2  # at a run whose process ends


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
        moves: attempts whose nodes have died.
    """

    place: int
    estimate: Estimate
    job: Job
    wait: bool = False
    attempts: int = 0
    moves: int = 0


class Queue:
    """The runs of a plan that no process or node has yet.

    Args:
        doer: of the driver; records runs that cannot be done.
        view: shows progress.
        on_done: receives the outcome of each run.

    Attributes:
        left: the runs.
    """

    def __init__(self, doer: Doer, view: View, on_done: Callable[[Done], None]) -> None:
        self.left: list[Queued] = []
        self._doer, self._lane, self._on_done = doer, view.lane(), on_done
        self._total = 0

    def fill(self, queued: Sequence[Queued]) -> None:
        """Take the runs of a plan."""
        self.left, self._total = list(queued), len(queued)

    def record_impossible(self) -> None:
        """Record the runs that cannot be done, which no process or node needs to see. Raises BenchError."""
        for each in [each for each in self.left if each.job.error is not None]:
            self.left.remove(each)
            self.finish_here(each)

    def headline(self, each: Queued) -> str:
        """Name a run, with its place in the plan."""
        run = each.job.run
        return f"[{each.place}/{self._total}] {run.label}{' (random init)' if run.weights.random else ''}"

    def finish_here(self, each: Queued) -> None:
        """End a run that needs no computing: it cannot be done, or somebody has done it meanwhile."""
        self._lane.say(self.headline(each))
        self.finish(each, self._doer.do(each.job, wait=True), self._lane)

    def finish(self, each: Queued, done: Done | None, lane: Lane) -> None:
        """Pass on the outcome of a run; None if a process of another suite does it."""
        if done is None:
            self.left.append(dataclasses.replace(each, wait=True))
            return
        lane.finish_run(each.estimate.work)
        self._on_done(done)

    def fail(self, each: Queued, error: BenchError, lane: Lane) -> None:
        """Record that a run has failed."""
        done = self._doer.fail(each.job, error)
        if done is not None:
            lane.say(f"  {summary(done.record)}")
        self.finish(each, done, lane)


def in_words(seconds: float) -> str:
    """Format a time limit in its largest unit."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
