"""Run a plan: measure the cost of models, do unfinished runs, save every result."""

import dataclasses
import time
import traceback
from collections.abc import Mapping, Sequence

from rich.console import Console

from mixmim_bench import facts, processes
from mixmim_bench.cost import measure
from mixmim_bench.data.seen import Seen
from mixmim_bench.errors import BenchError, counted
from mixmim_bench.machine import Machine
from mixmim_bench.progress import View, line_printer
from mixmim_bench.protocols import build_protocol
from mixmim_bench.protocols.workbench import Shelf
from mixmim_bench.specs import TORCH, Cost, ModelSpec, Run, RunRecord
from mixmim_bench.suite.engines import network_of, try_engines
from mixmim_bench.suite.estimate import Estimate, estimate
from mixmim_bench.suite.execute import blank_record, check_kept, execute, failed_record, open_run
from mixmim_bench.suite.follow import call_followers
from mixmim_bench.suite.outcome import OnRecord, Outcome, ignore
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.resolve import Resolved

# by benchmarks/gpu.py: 1,052 and 4,627 images/s
FLOAT32_ON_GPU = (
    "Computing in float32. This GPU also computes in bfloat16, 4 times as fast for MixMIM-B on an H200: "
    "--precision bfloat16, whose results have their own rows."
)


class Suite:
    """The runs of a plan on this machine, with their results folder."""

    def __init__(
        self,
        resolved: Resolved,
        store: RunStore,
        machine: Machine,
        console: Console,
        trackers: Sequence[str] = (),
        save_weights: bool = False,
    ) -> None:
        self.trackers = trackers
        self.save_weights = save_weights
        self.resolved = resolved
        self.store = store
        self.machine = machine
        self.console = console
        self._reasons: dict[str, str] = {}  # by network, why another engine does not compute it

    def estimates(self, finished: Mapping[str, RunRecord]) -> list[Estimate]:
        """Estimate every run."""
        return estimate(
            self.resolved,
            finished,
            self.store.read_costs(),
            self._cost_key,
            lambda: self.machine.matmul_gmacs_per_s,
        )

    def _cost_key(self, run: Run, size: tuple[int, int]) -> str:
        model, machine = _network_at(run, size), self.machine
        return Cost.key(model.arch, model.kwargs, size, machine.precision, machine.describe(), run.engine)

    def run(self, finished: Mapping[str, RunRecord], on_record: OnRecord = ignore) -> Outcome:
        """Do all unfinished runs; finished ones survive Ctrl-C. `on_record` receives each record."""
        self.store.prepare()
        outcome = Outcome()
        try:
            with View(self.console, 0) as view:
                if self.machine.is_slower_than_needed:
                    view.say(FLOAT32_ON_GPU)
                self.resolved, self._reasons = try_engines(self.resolved, self.machine, view.say)
                estimates = self.estimates(finished)
                self._measure_costs([e.planned.run for e in estimates if e.error is None], finished, view)
            pending = [estimate for estimate in estimates if not estimate.finished]
            with View(self.console, sum(estimate.work for estimate in pending)) as view:
                if len(pending) < len(estimates):
                    already = len(estimates) - len(pending)
                    view.say(f"{already} of {counted(len(estimates), 'run')} finished already.")
                self._do(pending, view, outcome, on_record)
        except KeyboardInterrupt:
            outcome.interrupted = True
            line_printer(self.console)("Interrupted. Finished runs are saved; rerun the command to resume.")
            return outcome
        failed = {record.run_id for record in outcome.failed}
        done = [estimate.planned.run for estimate in estimates]
        outcome.lost = [
            run for run in done if run.run_id not in failed and self.store.result(run.run_id) is None
        ]
        return outcome

    def _measure_costs(self, runs: Sequence[Run], finished: Mapping[str, RunRecord], view: View) -> None:
        """Measure each model at its own size and at those of its runs, once per machine and engine."""
        known = self.store.read_costs()
        wanted: dict[str, tuple[Run, tuple[int, int]]] = {}
        for run in runs:
            record = finished.get(run.run_id)
            if record is not None and record.costs and all(key in known for key in record.costs.values()):
                continue  # on another machine, maybe
            for size in (facts.own_size(run.model), run.computed_size):
                wanted[self._cost_key(run, size)] = (run, size)
        for key, (run, size) in wanted.items():
            if key in known:
                continue
            view.say(f"measuring the cost of {run.model.name} at {size[0]} x {size[1]} pixels")
            for engine in dict.fromkeys([run.engine, TORCH]):  # a size that one cannot compute
                try:
                    cost = measure(_network_at(run, size), size, self.machine, engine)
                except BenchError as error:
                    view.say(f"  {error}")
                else:
                    self.store.save_cost(key, cost)
                    break

    def _do(
        self,
        pending: Sequence[Estimate],
        view: View,
        outcome: Outcome,
        on_record: OnRecord,
    ) -> None:
        """Do the runs in order; those claimed by another process come last, in case that process dies."""
        shelf = Shelf()
        work = 0.0
        left = [(place, estimate, False) for place, estimate in enumerate(pending, 1)]
        while left:
            place, estimate, wait = left.pop(0)
            run = estimate.planned.run
            random_init = " (random init)" if run.weights.random else ""
            view.say(f"[{place}/{len(pending)}] {run.label}{random_init}")
            if wait:
                view.say("  waiting for the other process")
            with self.store.claim(run.run_id, wait) as claimed:
                if not claimed:
                    view.say("  claimed by another process")
                    left.append((place, estimate, True))
                    continue
                if self._finished_meanwhile(run):
                    view.say("  finished meanwhile by another process")
                    on_record(self.store.result(run.run_id) or blank_record(run), False)
                else:
                    record = self._do_one(estimate, view, shelf)
                    on_record(record, True)
                    if record.error:
                        outcome.failed.append(record)
            work += estimate.work
            view.finish_run(work)

    def _finished_meanwhile(self, run: Run) -> bool:
        """Return whether another process has finished a run on the same images."""
        record = self.store.result(run.run_id)
        return record is not None and record.data_bytes in ("", self._seen(run).known())

    def _seen(self, run: Run) -> Seen:
        return Seen(run.task.name, self.resolved.data_of(run))

    def _do_one(self, estimate: Estimate, view: View, shelf: Shelf) -> RunRecord:
        """Do a run and save its result or failure.

        In a job of several processes, an error that the others do not share ends the job.
        """
        run = estimate.planned.run
        clock = time.perf_counter()
        bench = None
        ends_job = None
        try:
            if estimate.error is not None:
                raise estimate.error
            data = self.resolved.data_of(run)
            bench = open_run(run, data, self.machine, view, shelf, estimate.gmacs)
            bench.note(*filter(None, [self._reasons.get(network_of(run))]))
            bench.logs, bench.trackers = self.store.logs_of(run.run_id), self.trackers
            if self.save_weights:
                bench.weights_to = self.store.weights_of(run.run_id)
            call_followers(run)
            record, arrays = execute(run, data, bench)
            check_kept(record, arrays)
            self._seen(run).note(record.data_bytes)
        except Exception as error:
            record, arrays = failed_record(run, error), {}
            trains = bench is not None and build_protocol(run.protocol, run.task.kind).trains
            if processes.count() > 1 and trains and not processes.in_all(error):
                ends_job = error
            if not isinstance(error, BenchError):
                view.say(traceback.format_exc().rstrip())
        costs = {
            "own": self._cost_key(run, facts.own_size(run.model)),
            "run": self._cost_key(run, run.computed_size),
        }
        self.store.save(dataclasses.replace(record, costs=costs), arrays)
        if bench is not None and not record.error:
            bench.finish()
        view.say(f"  {_summary(record)} in {time.perf_counter() - clock:.1f} s")
        if ends_job is not None:
            raise processes.ProcessLost(
                "the job ends, since its processes are no longer in step"
            ) from ends_job
        return record


def _network_at(run: Run, size: tuple[int, int]) -> ModelSpec:
    """Return the model that costs are measured of: at the size of the run as the run computes it."""
    return run.network if size == run.computed_size else run.model


def _summary(record: RunRecord) -> str:
    """Summarise the result of a run in one line."""
    if record.error:
        return f"FAILED: {record.error}"
    scores = [
        f"{metric} {100 * s['value']:.1f} % ({100 * s['low']:.1f} to {100 * s['high']:.1f})"
        for metric, s in ((name, record.scores[name]) for name in record.shown)
    ]
    return ", ".join([*scores, *record.notes])
