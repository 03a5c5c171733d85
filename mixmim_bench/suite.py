"""Doing a plan: measure what the models cost, do what is not finished, keep every result."""

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console

from mixmim_bench.bench import Shelf, Workbench
from mixmim_bench.cost import count_macs, measure
from mixmim_bench.errors import BenchError
from mixmim_bench.execute import execute, failed_record
from mixmim_bench.machine import Machine
from mixmim_bench.models.build import own_size
from mixmim_bench.plan import Planned
from mixmim_bench.progress import View
from mixmim_bench.resolve import Resolved
from mixmim_bench.specs import Cost, ModelSpec, Run, RunRecord
from mixmim_bench.store import RunStore
from mixmim_bench.training import TRAIN_WORK

# Of the machine's matrix-multiply peak, what a forward pass reaches; for estimates before measuring.
TYPICAL_SHARE_OF_PEAK = 0.5


@dataclass
class Outcome:
    """What came of a suite."""

    done: int = 0
    already: int = 0
    failed: list[RunRecord] = field(default_factory=list)
    interrupted: bool = False


@dataclass(frozen=True)
class Estimate:
    """What a run will take."""

    planned: Planned
    gmacs: float  # of one image
    work: float  # GMACs of the whole run
    seconds: float
    finished: bool


class Suite:
    """The runs of a plan on one machine, with their results folder."""

    def __init__(self, resolved: Resolved, store: RunStore, machine: Machine, console: Console) -> None:
        self.resolved = resolved
        self.store = store
        self.machine = machine
        self.console = console
        self._gmacs: dict[tuple[str, str, tuple[int, int]], float] = {}

    # -- before any work ---------------------------------------------------------------------------

    def estimates(self) -> list[Estimate]:
        """Say for each run what it takes and how long, from measured speeds where there are any."""
        finished = self.store.finished()
        costs = self.store.read_costs()
        return [self._estimate(planned, costs, finished) for planned in self.resolved.planned]

    def _estimate(self, planned: Planned, costs: dict[str, Cost], finished: set[str]) -> Estimate:
        run = planned.run
        gmacs = self.gmacs(run.model, _size(run))
        work = gmacs * (planned.forward + TRAIN_WORK * planned.train)
        cost = costs.get(self._cost_key(run.model, _size(run)))
        if cost is not None:
            speed = cost.images_per_s * gmacs
        else:
            speed = TYPICAL_SHARE_OF_PEAK * self.machine.matmul_gmacs_per_s()
        return Estimate(planned, gmacs, work, work / speed, run.run_id in finished)

    def gmacs(self, model: ModelSpec, size: tuple[int, int]) -> float:
        """Count the GMACs of a backbone for one image, once a model and size."""
        key = (model.arch, str(model.kwargs), size)
        if key not in self._gmacs:
            self._gmacs[key] = count_macs(model, size, num_classes=0).macs / 1e9
        return self._gmacs[key]

    def _cost_key(self, model: ModelSpec, size: tuple[int, int]) -> str:
        return Cost.key(model.arch, model.kwargs, size, self.machine.precision, self.machine.describe())

    # -- work --------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Do every run that is not finished; Ctrl-C keeps what is."""
        self.store.prepare()
        estimates = self.estimates()
        pending = [e for e in estimates if not e.finished]
        outcome = Outcome(already=len(estimates) - len(pending))
        with View(self.console, sum(e.work for e in pending)) as view:
            if outcome.already:
                view.say(f"{outcome.already} of {len(estimates)} runs are finished already.")
            try:
                self._measure_costs([e.planned.run for e in estimates], view)
                self._do(pending, view, outcome)
            except KeyboardInterrupt:
                outcome.interrupted = True
                view.say("Interrupted; what is finished is kept, and the same command goes on.")
        return outcome

    def _measure_costs(self, runs: Sequence[Run], view: View) -> None:
        """Measure each model at its own size and at those of its runs, once a machine."""
        wanted: dict[str, tuple[ModelSpec, tuple[int, int]]] = {}
        for run in runs:
            for size in (own_size(run.model), _size(run)):
                wanted[self._cost_key(run.model, size)] = (run.model, size)
        known = self.store.read_costs()
        for key, (model, size) in wanted.items():
            if key in known:
                continue
            view.say(f"measuring what {model.name} costs at {size[0]} x {size[1]} pixels")
            try:
                self.store.save_cost(key, measure(model, size, self.machine))
            except BenchError as error:
                view.say(f"  {error}")

    def _do(self, pending: Sequence[Estimate], view: View, outcome: Outcome) -> None:
        shelf = Shelf()
        work = 0.0
        for i, estimate in enumerate(pending, 1):
            run = estimate.planned.run
            view.say(f"[{i}/{len(pending)}] {run.label}{_random(run)}")
            bench = Workbench(run, self.machine, view, estimate.gmacs, shelf)
            clock = time.perf_counter()
            try:
                record, arrays = execute(run, self.resolved.data[run.task.name], bench)
            except Exception as error:
                record, arrays = failed_record(run, error), {}
                if not isinstance(error, BenchError):
                    view.say(traceback.format_exc().rstrip())
                outcome.failed.append(record)
            else:
                outcome.done += 1
            self.store.save(record, arrays)
            view.say(f"  {_told(record)} in {time.perf_counter() - clock:.1f} s")
            work += estimate.work
            view.finish_run(work)


def _size(run: Run) -> tuple[int, int]:
    height, width = run.preprocessing["size"]
    return height, width


def _random(run: Run) -> str:
    return " (random init)" if run.weights["kind"] == "random" else ""


def _told(record: RunRecord) -> str:
    """Tell the result of a run in one line."""
    if record.error:
        return f"FAILED: {record.error}"
    scores = [
        f"{metric} {100 * s['value']:.1f} % ({100 * s['low']:.1f} to {100 * s['high']:.1f})"
        for metric, s in record.scores.items()
    ]
    return ", ".join([*scores, *record.notes])
