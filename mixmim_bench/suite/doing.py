"""One run of a plan, from its claim to its saved record: the step that every driver of a suite repeats."""

import dataclasses
import json
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from mixmim_bench import facts, processes
from mixmim_bench.cost import measure
from mixmim_bench.data.dataset import TaskData
from mixmim_bench.data.seen import Seen
from mixmim_bench.errors import BenchError
from mixmim_bench.machine import Machine
from mixmim_bench.progress import Stages
from mixmim_bench.protocols import build_protocol
from mixmim_bench.protocols.workbench import Shelf
from mixmim_bench.specs import TORCH, Cost, ModelSpec, Run, RunRecord
from mixmim_bench.suite.execute import blank_record, check_kept, execute, failed_record, open_run
from mixmim_bench.suite.follow import call_followers
from mixmim_bench.suite.records import RunStore


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run to be done.

    Attributes:
        run: the run.
        gmacs: of one image; counted if None.
        notes: for the record.
        error: why it cannot be done.
    """

    run: Run
    gmacs: float | None = None
    notes: tuple[str, ...] = ()
    error: BenchError | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, for another process to do it; without the error."""
        return {"run": json.loads(self.run.to_json()), "gmacs": self.gmacs, "notes": list(self.notes)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Job":
        """Restore a job from the output of `to_json`."""
        run = Run.from_json(json.dumps(values["run"]))
        return cls(run=run, gmacs=values["gmacs"], notes=tuple(values["notes"]))


@dataclass(frozen=True)
class Done:
    """The record of a run, and whether it was done now rather than found."""

    record: RunRecord
    new: bool


class Doer:
    """Does runs one after the other on a machine, and saves their results or failures.

    Args:
        store: the results folder.
        machine: device and precision.
        data_of: returns the images of a run; may raise BenchError, which is recorded.
        view: shows progress.
        trackers: of trainings, by name.
        save_weights: whether fine-tuned networks are saved.
    """

    def __init__(
        self,
        store: RunStore,
        machine: Machine,
        data_of: Callable[[Run], TaskData],
        view: Stages,
        trackers: Sequence[str] = (),
        save_weights: bool = False,
    ) -> None:
        self.store, self.machine, self.data_of, self.view = store, machine, data_of, view
        self.trackers, self.save_weights = trackers, save_weights
        self._shelf = Shelf()

    def do(self, job: Job, wait: bool = False, started: Callable[[], None] = lambda: None) -> Done | None:
        """Do a run, unless another process has finished it meanwhile.

        Args:
            job: what to do.
            wait: whether to wait for another process that does the run.
            started: called when the run is claimed.

        Returns:
            The record; None if another process does the run.

        Raises:
            BenchError: the result cannot be saved.
        """
        run = job.run
        with ExitStack() as stack:
            claimed = stack.enter_context(self.store.claim(run.run_id))
            if not claimed and wait:
                self.view.say("  waiting for the other process")
                claimed = stack.enter_context(self.store.claim(run.run_id, wait=True))
            if not claimed:
                self.view.say("  claimed by another process")
                return None
            started()
            if self.finished_meanwhile(run):
                self.view.say("  finished meanwhile by another process")
                return Done(self.store.result(run.run_id) or blank_record(run), new=False)
            return Done(self._do_claimed(job), new=True)

    def fail(self, job: Job, error: BenchError) -> Done | None:
        """Record that a run has failed in another process, unless it was finished at the last moment.

        Returns None if a further process does the run by now.
        """
        with self.store.claim(job.run.run_id) as claimed:
            if not claimed:
                return None
            record = self.store.result(job.run.run_id)
            if record is None:
                record = self._with_costs(job.run, failed_record(job.run, error))
                self.store.save(record, {})
            return Done(record, new=True)

    def finished_meanwhile(self, run: Run) -> bool:
        """Return whether another process has finished a run on the same images."""
        record = self.store.result(run.run_id)
        if record is None:
            return False
        try:
            known = Seen(run.task.name, self.data_of(run)).known()
            # images that nobody has read on this machine: the next plan reads them
            return not known or record.data_bytes in ("", known)
        except BenchError:  # the images are gone, which the run itself reports
            return False

    def measure_costs(self, runs: Iterable[Run], known: Collection[str]) -> None:
        """Measure each network at its own size and at those of its runs, once per machine and engine.

        known: keys of measurements.
        """
        wanted = {
            cost_key(run, size, self.machine): (run, size)
            for run in runs
            for size in (facts.own_size(run.model), run.computed_size)
        }
        for key, (run, size) in wanted.items():
            if key in known:
                continue
            self.view.say(f"measuring the cost of {run.model.name} at {size[0]} x {size[1]} pixels")
            for engine in dict.fromkeys([run.engine, TORCH]):  # a size that one cannot compute
                try:
                    cost = measure(network_at(run, size), size, self.machine, engine)
                except BenchError as error:
                    self.view.say(f"  {error}")
                else:
                    self.store.save_cost(key, cost)
                    break

    def _do_claimed(self, job: Job) -> RunRecord:
        """Do a run and save its result or failure.

        In a job of several processes, an error that the others do not share ends the job.
        """
        run = job.run
        clock = time.perf_counter()
        bench = None
        ends_job = None
        try:
            if job.error is not None:
                raise job.error
            data = self.data_of(run)
            bench = open_run(run, data, self.machine, self.view, self._shelf, job.gmacs)
            bench.note(*job.notes)
            bench.logs, bench.trackers = self.store.logs_of(run.run_id), self.trackers
            if self.save_weights:
                bench.weights_to = self.store.weights_of(run.run_id)
            call_followers(run)
            record, arrays = execute(run, data, bench)
            check_kept(record, arrays)
            Seen(run.task.name, data).note(record.data_bytes)
        except Exception as error:
            record, arrays = failed_record(run, error), {}
            trains = bench is not None and build_protocol(run.protocol, run.task.kind).trains
            if processes.count() > 1 and trains and not processes.in_all(error):
                ends_job = error
            if not isinstance(error, BenchError):
                self.view.say(traceback.format_exc().rstrip())
        self.store.save(self._with_costs(run, record), arrays)
        if bench is not None and not record.error:
            bench.finish()
        self.view.say(f"  {summary(record)} in {time.perf_counter() - clock:.1f} s")
        if ends_job is not None:
            raise processes.ProcessLost(
                "the job ends, since its processes are no longer in step"
            ) from ends_job
        return record

    def _with_costs(self, run: Run, record: RunRecord) -> RunRecord:
        costs = {
            "own": cost_key(run, facts.own_size(run.model), self.machine),
            "run": cost_key(run, run.computed_size, self.machine),
        }
        return dataclasses.replace(record, costs=costs)


def cost_key(run: Run, size: tuple[int, int], machine: Machine) -> str:
    """Return the key of the cost of a run's network at a size on a machine."""
    model = network_at(run, size)
    return Cost.key(model.arch, model.kwargs, size, machine.precision, machine.describe(), run.engine)


def network_at(run: Run, size: tuple[int, int]) -> ModelSpec:
    """Return the model that costs are measured of: at the size of the run as the run computes it."""
    return run.network if size == run.computed_size else run.model


def summary(record: RunRecord) -> str:
    """Summarise the result of a run in one line."""
    if record.error:
        return f"FAILED: {record.error}"
    scores = [
        f"{metric} {100 * s['value']:.1f} % ({100 * s['low']:.1f} to {100 * s['high']:.1f})"
        for metric, s in ((name, record.scores[name]) for name in record.shown)
    ]
    return ", ".join([*scores, *record.notes])
