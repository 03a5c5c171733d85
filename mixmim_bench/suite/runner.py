"""Run a plan: measure the cost of models, do unfinished runs, save every result."""

import dataclasses
from collections.abc import Mapping, Sequence

from rich.console import Console

from mixmim_bench.errors import counted
from mixmim_bench.machine import Machine
from mixmim_bench.progress import View, line_printer
from mixmim_bench.specs import Run, RunRecord, canonical_json
from mixmim_bench.suite.doing import Doer, Done, Job, cost_key
from mixmim_bench.suite.engines import network_of, try_engines
from mixmim_bench.suite.estimate import Estimate, estimate
from mixmim_bench.suite.fleet import Cluster, Fleet
from mixmim_bench.suite.outcome import OnRecord, Outcome, ignore
from mixmim_bench.suite.pool import Pool
from mixmim_bench.suite.queued import Queue, Queued
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.resolve import Resolved
from mixmim_bench.suite.shards import loads_of

# by benchmarks/gpu.py: 1,052 and 4,627 images/s
FLOAT32_ON_GPU = (
    "Computing in float32. This GPU also computes in bfloat16, 4 times as fast for MixMIM-B on an H200: "
    "--precision bfloat16, whose results have their own rows."
)


class Suite:
    """The runs of a plan on this machine, with their results folder.

    With a fleet, they are done in worker processes or on the nodes of a cluster, else in this process.
    """

    def __init__(
        self,
        resolved: Resolved,
        store: RunStore,
        machine: Machine,
        console: Console,
        trackers: Sequence[str] = (),
        save_weights: bool = False,
        fleet: Fleet | Cluster | None = None,
    ) -> None:
        self.trackers = trackers
        self.save_weights = save_weights
        self.fleet = fleet
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
            lambda run, size: cost_key(run, size, self.machine),
            lambda: self.machine.matmul_gmacs_per_s,
        )

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
                possible = [each.planned.run for each in estimates if each.error is None]
                for machine in self._machines():
                    self._measure_costs(possible, finished, machine, view)
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

    def _machines(self) -> list[Machine]:
        """Return the machine, as often as there are devices of different kinds; nodes measure themselves."""
        if isinstance(self.fleet, Cluster):
            return []
        devices = (self.machine.device,) if self.fleet is None else self.fleet.devices
        machines = [dataclasses.replace(self.machine, device=device) for device in devices]
        return list({canonical_json(machine.describe()): machine for machine in machines}.values())

    def _measure_costs(
        self, runs: Sequence[Run], finished: Mapping[str, RunRecord], machine: Machine, view: View
    ) -> None:
        """Measure the networks of runs whose costs are not known, here or on another machine."""
        known = self.store.read_costs()
        unknown = []
        for run in runs:
            record = finished.get(run.run_id)
            if record is None or not record.costs or any(key not in known for key in record.costs.values()):
                unknown.append(run)
        Doer(self.store, machine, self.resolved.data_of, view.lane()).measure_costs(unknown, known)

    def _do(self, pending: Sequence[Estimate], view: View, outcome: Outcome, on_record: OnRecord) -> None:
        """Do the runs; those claimed by another process come last, in case that process dies."""
        lane = view.lane()
        doer = Doer(self.store, self.machine, self.resolved.data_of, lane, self.trackers, self.save_weights)
        left = [Queued(place, estimate, self._job(estimate)) for place, estimate in enumerate(pending, 1)]

        def ended(done: Done) -> None:
            on_record(done.record, done.new)
            if done.new and done.record.error:
                outcome.failed.append(done.record)

        if isinstance(self.fleet, Cluster):
            from mixmim_bench.suite.cluster import RayPool

            RayPool(self.fleet, doer, loads_of(self.resolved), view, ended).do(left)
            return
        if self.fleet is not None:
            Pool(self.fleet, doer, loads_of(self.resolved), view, ended).do(left)
            return
        queue = Queue(doer, view, ended)
        queue.fill(left)
        while queue.left:
            each = queue.left.pop(0)
            lane.say(queue.headline(each))
            queue.finish(each, doer.do(each.job, each.wait), lane)

    def _job(self, estimate: Estimate) -> Job:
        run = estimate.planned.run
        reason = self._reasons.get(network_of(run))
        notes = () if reason is None else (reason,)
        return Job(run=run, gmacs=estimate.gmacs, notes=notes, error=estimate.error)
