"""Find the finished runs of a plan and estimate the others, without importing torch."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mixmim_bench import facts
from mixmim_bench.data.seen import Seen
from mixmim_bench.errors import BenchError
from mixmim_bench.features import OWN
from mixmim_bench.progress import View
from mixmim_bench.protocols.contract import TRAIN_WORK
from mixmim_bench.specs import Cost, Run, RunRecord
from mixmim_bench.suite.plan import Planned
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.resolve import Resolved

# Share of the machine's matrix-multiply peak that a forward pass reaches; for estimates before measuring.
TYPICAL_SHARE_OF_PEAK = 0.5


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a run, or why it cannot be done."""

    planned: Planned
    finished: bool
    gmacs: float = 0.0  # of one image
    cached: int = 0  # images whose features are cached, or will be by earlier runs
    seconds: float = 0.0  # of forward and backward passes; the time to fit a probe is unknown
    features_bytes: int = 0  # that will be written
    error: BenchError | None = None

    @property
    def work(self) -> float:
        """GMACs of the whole run."""
        work = self.planned.work
        return self.gmacs * (work.forward - self.cached + TRAIN_WORK * work.train)


def finished_runs(resolved: Resolved, store: RunStore, view: View | None = None) -> dict[str, RunRecord]:
    """Return the results of finished runs by run id.

    With a view, the images are compared with those of the results: by the modification times of the files
    and, if these are new to this machine, by their bytes.
    """
    not_counted: list[str] = []
    ids = {planned.run.run_id for planned in resolved.planned}
    finished = {run_id: record for run_id, record in store.finished(not_counted).items() if run_id in ids}
    if view is None:
        return finished
    for file in not_counted:
        view.say(f"Run counts as unfinished: {file}")
    for (name, roles), data in resolved.data.items():
        runs = [each.run for each in resolved.planned if each.run.task.key == (name, roles)]
        made = {run.run_id: finished[run.run_id] for run in runs if run.run_id in finished}
        if not any(record.data_bytes for record in made.values()):
            continue
        seen = Seen(name, data)
        current = seen.known()
        if not current:
            view.say(f"{name}: hashing the images, whose modification times are new to this machine")
            with view.stage("hashing", sum(data.counts.values()), 0.0) as advance:
                current = seen.hash_again(advance)
        for run in runs:
            record = made.get(run.run_id)
            if record is not None and record.data_bytes not in ("", current):
                view.say(f"{run.label}: the images differ from those of the result; running again")
                finished.pop(run.run_id, None)
    return finished


def nothing_to_do(resolved: Resolved, finished: Mapping[str, RunRecord], store: RunStore) -> bool:
    """Return whether every run is finished and all its costs are measured."""
    if any(planned.run.run_id not in finished for planned in resolved.planned):
        return False
    costs = store.read_costs()
    return all(key in costs for record in finished.values() for key in record.costs.values())


def estimate(
    resolved: Resolved,
    finished: Mapping[str, RunRecord],
    costs: Mapping[str, Cost],
    cost_key: Callable[[Run, tuple[int, int]], str],
    peak: Callable[[], float],
) -> list[Estimate]:
    """Estimate every run, from measured speeds where available.

    Args:
        resolved: the plan, with its images.
        finished: the results of finished runs.
        costs: measurements by key.
        cost_key: returns the key of a measurement for a run and size (h, w) on this machine.
        peak: returns the machine's matrix-multiply peak in GMACs a second.
    """
    extracted: set[str] = set()  # keys of features that an earlier run will have made
    estimates = []
    for planned in resolved.planned:
        run = planned.run
        if run.run_id in finished:
            estimates.append(_estimate_finished(planned))
            continue
        try:
            gmacs = facts.count_gmacs(run.network, run.computed_size)
        except BenchError as error:
            estimates.append(Estimate(planned, finished=False, error=error))
            continue
        cached, missing = _features(resolved, planned, extracted)
        width = facts.feature_width(run.model) if missing else 0
        each = Estimate(planned, False, gmacs, cached, features_bytes=missing * width * 4)
        cost = costs.get(cost_key(run, run.computed_size))
        speed = cost.images_per_s * gmacs if cost is not None else TYPICAL_SHARE_OF_PEAK * peak()
        estimates.append(dataclasses.replace(each, seconds=each.work / speed))
    return estimates


def _estimate_finished(planned: Planned) -> Estimate:
    try:
        return Estimate(
            planned, finished=True, gmacs=facts.count_gmacs(planned.run.network, planned.run.computed_size)
        )
    except BenchError:  # a size that this version cannot take
        return Estimate(planned, finished=True)


def _features(resolved: Resolved, planned: Planned, extracted: set[str]) -> tuple[int, int]:
    """Count the images of a run with cached features, and those to be extracted."""
    if planned.protocol.frozen_layers() != (OWN,):  # the widths of other layers are unknown
        return 0, 0
    from mixmim_bench.features.keys import entry_of

    run, cached, missing = planned.run, 0, 0
    for split in resolved.data_of(run).splits.values():
        entry = entry_of(run, split)
        if entry.key in extracted or entry.manifest() is not None:
            cached += len(split.part)
        else:
            missing += len(split.part)
        extracted.add(entry.key)
    return cached, missing
