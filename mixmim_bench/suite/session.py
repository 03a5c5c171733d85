"""A selection from its plan to its records, as the command line and Python run it.

Nothing here imports torch until something has to be computed.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from mixmim_bench.errors import BenchError, nearest
from mixmim_bench.progress import View, download_bar, line_printer
from mixmim_bench.specs import AUTO, ENGINES, Run, RunRecord
from mixmim_bench.suite.estimate import Estimate, finished_runs, nothing_to_do
from mixmim_bench.suite.fleet import Cluster, Fleet
from mixmim_bench.suite.outcome import OnRecord, Outcome, ignore
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.resolve import resolve
from mixmim_bench.suite.shards import Shard, cut, of_runs
from mixmim_bench.suite.wanted import Selection

if TYPE_CHECKING:
    from mixmim_bench.machine import Machine
    from mixmim_bench.suite.runner import Suite


class Session:
    """A planned selection.

    Args:
        selection: what to run.
        store: the results folder.
        machine: opens the machine, when it is needed.
        console: shows progress.
        engine: of frozen features.
        trackers: of trainings, by name.
        save_weights: whether fine-tuned networks are saved.
        planning: whether nothing is downloaded, written or run.
        shard: the part of the plan that is done here; None: all of it.
        fleet: the processes or the cluster that do the runs; None: this process.

    Raises:
        BenchError: the selection cannot be run.
    """

    def __init__(
        self,
        selection: Selection,
        store: RunStore,
        machine: "Callable[[], Machine]",
        console: Console,
        engine: str = AUTO,
        trackers: Sequence[str] = (),
        save_weights: bool = False,
        planning: bool = False,
        shard: Shard | None = None,
        fleet: Fleet | Cluster | None = None,
    ) -> None:
        if engine not in (AUTO, *ENGINES):
            raise BenchError(f"no engine {engine!r}; {nearest(engine, [AUTO, *ENGINES])}")
        self.store, self.console, self.engine = store, console, engine
        self.trackers, self.save_weights = trackers, save_weights
        self._machine, self._fleet = machine, fleet
        if not planning:
            store.prepare()
        say = line_printer(console)
        self.resolved = self._whole = resolve(selection, say, None if planning else download_bar(console))
        if shard is not None:
            part = cut(self._whole, shard)
            self.resolved = of_runs(self._whole, part.run_ids)
            say(part.describe())
        with View(console, 0) as view:
            self.finished = finished_runs(self.resolved, store, None if planning else view)

    def estimates(self) -> list[Estimate]:
        """Estimate every run."""
        return self._suite().estimates(self.finished)

    def is_finished(self) -> bool:
        """Return whether every run is finished and all its costs are measured."""
        return nothing_to_do(self.resolved, self.finished, self.store)

    def run(self, on_record: OnRecord = ignore) -> Outcome:
        """Do all unfinished runs; `on_record` receives the record of each run, of finished ones first."""
        for each in self.resolved.planned:
            record = self.finished.get(each.run.run_id)
            if record is not None:
                self._warn_of_weights(each.run, trains=each.protocol.trains)
                on_record(record, False)
        if self.is_finished():
            return Outcome()
        return self._suite().run(self.finished, on_record)

    def records(self) -> list[RunRecord]:
        """Return the results of the planned runs, in their order; those of failed runs are missing."""
        records = []
        for run in [each.run for each in self.resolved.planned]:
            record = self.store.result(run.run_id)
            if record is not None:  # an equal model may have done it under another name
                records.append(dataclasses.replace(record, model=run.model.name))
        return records

    def _suite(self) -> "Suite":
        from mixmim_bench.suite.engines import with_engines
        from mixmim_bench.suite.runner import Suite

        machine = self._machine()
        # by the whole plan, so that all shards choose the same
        resolved = with_engines(self._whole, self.finished, machine, self.engine)
        resolved = of_runs(resolved, {each.run.run_id for each in self.resolved.planned})
        return Suite(
            resolved, self.store, machine, self.console, self.trackers, self.save_weights, self._fleet
        )

    def _warn_of_weights(self, run: Run, trains: bool) -> None:
        path = self.store.weights_of(run.run_id)
        if self.save_weights and trains and not path.exists():
            line_printer(self.console)(f"{run.label} was finished without --save-weights; there is no {path}")
