"""Doing a plan: measure what the models cost, do what is not finished, keep every result."""

import dataclasses
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console

from mixmim_bench.cost import count_on_meta, measure
from mixmim_bench.data.seen import Seen
from mixmim_bench.errors import BenchError, counted
from mixmim_bench.features import OWN
from mixmim_bench.features.keys import entry_of
from mixmim_bench.machine import Machine
from mixmim_bench.models.build import feature_width, own_size
from mixmim_bench.progress import View, line_printer
from mixmim_bench.protocols.workbench import Shelf
from mixmim_bench.specs import Cost, ModelSpec, Run, RunRecord
from mixmim_bench.suite.execute import check_kept, execute, failed_record, open_run
from mixmim_bench.suite.plan import Planned
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.resolve import Resolved
from mixmim_bench.training.loop import TRAIN_WORK

# Of the machine's matrix-multiply peak, what a forward pass reaches; for estimates before measuring.
TYPICAL_SHARE_OF_PEAK = 0.5


@dataclass
class Outcome:
    """What came of a suite."""

    failed: list[RunRecord] = field(default_factory=list)
    lost: list[Run] = field(default_factory=list)  # finished, but the records are gone
    interrupted: bool = False


@dataclass(frozen=True)
class Estimate:
    """What a run will take, or why it cannot be done."""

    planned: Planned
    finished: bool
    gmacs: float = 0.0  # of one image
    at_hand: int = 0  # images whose features are there, or will be after the runs before
    seconds: float = 0.0  # in the network; what a probe then learns on is not known before
    features_bytes: int = 0  # that will be written
    error: BenchError | None = None

    @property
    def work(self) -> float:
        """GMACs of the whole run."""
        work = self.planned.work
        return self.gmacs * (work.forward - self.at_hand + TRAIN_WORK * work.train)


class Suite:
    """The runs of a plan on one machine, with their results folder."""

    def __init__(self, resolved: Resolved, store: RunStore, machine: Machine, console: Console) -> None:
        self.resolved = resolved
        self.store = store
        self.machine = machine
        self.console = console
        self._gmacs: dict[tuple[str, str, tuple[int, int]], float | BenchError] = {}

    # -- before any work ---------------------------------------------------------------------------

    def estimates(self, view: View | None = None) -> list[Estimate]:
        """Say for each run what it takes and how long, from measured speeds where there are any.

        With a view the images of finished runs are compared with those that the results were made from.
        """
        not_counted: list[str] = []
        finished = self.store.finished(not_counted)
        if view is not None:
            for file in not_counted:
                view.say(f"Its run counts as not done: {file}")
            finished = self._of_these_images(finished, view)
        costs = self.store.read_costs()
        extracted: set[str] = set()  # keys of features that an earlier run will have made
        return [
            self._estimate(planned, planned.run.run_id in finished, costs, extracted)
            for planned in self.resolved.planned
        ]

    def _of_these_images(self, finished: dict[str, RunRecord], view: View) -> dict[str, RunRecord]:
        """Leave out the results that were made from images with other bytes than those that are here.

        The bytes are hashed where this machine has not seen the files with the times that they have now.
        """
        kept = dict(finished)
        for name, data in self.resolved.data.items():
            runs = [each.run for each in self.resolved.planned if each.run.task.name == name]
            made = {run.run_id: finished[run.run_id] for run in runs if run.run_id in finished}
            if not any(record.data_bytes for record in made.values()):
                continue
            seen = self._seen(name)
            current = seen.known()
            if not current:
                view.say(f"{name}: hashing the images, whose times are new to this machine")
                with view.stage("hashing", sum(data.counts.values()), 0.0) as advance:
                    current = seen.hash_again(advance)
            for run in runs:
                record = made.get(run.run_id)
                if record is not None and record.data_bytes not in ("", current):
                    view.say(f"{run.label}: the images are not those of the result, so it is run again")
                    kept.pop(run.run_id, None)
        return kept

    def _estimate(
        self, planned: Planned, finished: bool, costs: dict[str, Cost], extracted: set[str]
    ) -> Estimate:
        run = planned.run
        gmacs = self._count(run.model, run.size)
        if isinstance(gmacs, BenchError):
            return Estimate(planned, finished, error=gmacs)
        at_hand, lacking = (0, 0) if finished else self._features(planned, extracted)
        estimate = Estimate(
            planned, finished, gmacs, at_hand, features_bytes=lacking * feature_width(run.model) * 4
        )
        cost = costs.get(self._cost_key(run.model, run.size))
        if cost is not None:
            speed = cost.images_per_s * gmacs
        else:
            speed = TYPICAL_SHARE_OF_PEAK * self.machine.matmul_gmacs_per_s
        return dataclasses.replace(estimate, seconds=estimate.work / speed)

    def _features(self, planned: Planned, extracted: set[str]) -> tuple[int, int]:
        """Count the images whose features a run finds, and those whose features it will write."""
        if planned.protocol.frozen_layers() != (OWN,):  # other layers are known to the network alone
            return 0, 0
        run, found, lacking = planned.run, 0, 0
        for split in self.resolved.data[run.task.name].splits.values():
            entry = entry_of(run, split)
            if entry.key in extracted or entry.manifest() is not None:
                found += len(split.part)
            else:
                lacking += len(split.part)
            extracted.add(entry.key)
        return found, lacking

    def _count(self, model: ModelSpec, size: tuple[int, int]) -> float | BenchError:
        """Count the GMACs of one image, once a model and size; an error is what a run then fails with."""
        key = (model.arch, str(model.kwargs), size)
        if key not in self._gmacs:
            try:
                self._gmacs[key] = count_on_meta(model, size).total / 1e9
            except BenchError as error:
                self._gmacs[key] = error
        return self._gmacs[key]

    def _cost_key(self, model: ModelSpec, size: tuple[int, int]) -> str:
        return Cost.key(model.arch, model.kwargs, size, self.machine.precision, self.machine.describe())

    # -- work --------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Do every run that is not finished; Ctrl-C keeps what is."""
        self.store.prepare()
        outcome = Outcome()
        try:
            with View(self.console, 0) as view:
                estimates = self.estimates(view)
                self._measure_costs([e.planned.run for e in estimates if e.error is None], view)
            pending = [estimate for estimate in estimates if not estimate.finished]
            with View(self.console, sum(estimate.work for estimate in pending)) as view:
                if len(pending) < len(estimates):
                    already = len(estimates) - len(pending)
                    view.say(f"{already} of {counted(len(estimates), 'run')} finished already.")
                self._do(pending, view, outcome)
        except KeyboardInterrupt:
            outcome.interrupted = True
            line_printer(self.console)("Interrupted; what is finished is kept, and the same command goes on.")
            return outcome
        failed = {record.run_id for record in outcome.failed}
        done = [estimate.planned.run for estimate in estimates]
        outcome.lost = [
            run for run in done if run.run_id not in failed and self.store.result(run.run_id) is None
        ]
        return outcome

    def _measure_costs(self, runs: Sequence[Run], view: View) -> None:
        """Measure each model at its own size and at those of its runs, once a machine."""
        wanted: dict[str, tuple[ModelSpec, tuple[int, int]]] = {}
        for run in runs:
            for size in (own_size(run.model), run.size):
                wanted[self._cost_key(run.model, size)] = (run.model, size)
        known = self.store.read_costs()
        for key, (model, size) in wanted.items():
            if key in known:
                continue
            view.say(f"measuring what {model.name} costs at {size[0]} x {size[1]} pixels")
            try:
                cost = measure(model, size, self.machine)
            except BenchError as error:
                view.say(f"  {error}")
            else:
                self.store.save_cost(key, cost)

    def _do(self, pending: Sequence[Estimate], view: View, outcome: Outcome) -> None:
        """Do the runs in order; one that another process is doing comes last, in case that process dies."""
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
                    view.say("  another process is doing it")
                    left.append((place, estimate, True))
                    continue
                if self._finished_meanwhile(run):
                    view.say("  finished meanwhile by another process")
                else:
                    record = self._do_one(estimate, view, shelf)
                    if record.error:
                        outcome.failed.append(record)
            work += estimate.work
            view.finish_run(work)

    def _finished_meanwhile(self, run: Run) -> bool:
        """Whether another process has finished a run, on the images that are here."""
        record = self.store.result(run.run_id)
        return record is not None and record.data_bytes in ("", self._seen(run.task.name).known())

    def _seen(self, task: str) -> Seen:
        return Seen(task, self.resolved.data[task])

    def _do_one(self, estimate: Estimate, view: View, shelf: Shelf) -> RunRecord:
        """Do a run and keep what came of it, a failure too."""
        run = estimate.planned.run
        clock = time.perf_counter()
        try:
            if estimate.error is not None:
                raise estimate.error
            data = self.resolved.data[run.task.name]
            bench = open_run(run, data, self.machine, view, shelf, estimate.gmacs)
            record, arrays = execute(run, data, bench)
            check_kept(record, arrays)
            self._seen(run.task.name).note(record.data_bytes)
        except Exception as error:
            record, arrays = failed_record(run, error), {}
            if not isinstance(error, BenchError):
                view.say(traceback.format_exc().rstrip())
        costs = {
            "own": self._cost_key(run.model, own_size(run.model)),
            "run": self._cost_key(run.model, run.size),
        }
        self.store.save(dataclasses.replace(record, costs=costs), arrays)
        view.say(f"  {_told(record)} in {time.perf_counter() - clock:.1f} s")
        return record


def _told(record: RunRecord) -> str:
    """Tell the result of a run in one line."""
    if record.error:
        return f"FAILED: {record.error}"
    scores = [
        f"{metric} {100 * s['value']:.1f} % ({100 * s['low']:.1f} to {100 * s['high']:.1f})"
        for metric, s in record.scores.items()
        if metric in record.identity["task"]["metrics"]
    ]
    return ", ".join([*scores, *record.notes])
