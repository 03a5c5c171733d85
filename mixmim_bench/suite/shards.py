"""Shards of a plan, for jobs that share no scheduler: disjoint, together the whole plan, balanced.

A shard depends on the plan alone: not on which runs are finished, on measured speeds or on the machine. Runs
that read the same features form one item, so that these are extracted once; an item is split only where that
saves more than the second extraction costs. Items go to shards by longest processing time first (LPT): no two
shards differ by more than the largest item.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from mixmim_bench import facts
from mixmim_bench.data.dataset import Split
from mixmim_bench.errors import BenchError, counted
from mixmim_bench.protocols.contract import TRAIN_WORK
from mixmim_bench.specs import Run, digest
from mixmim_bench.suite.plan import Planned
from mixmim_bench.suite.resolve import Resolved


@dataclass(frozen=True)
class Shard:
    """Shard `index` (from 1) of `count`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Parse I/N; raises BenchError."""
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        index, count = (int(number) for number in found.groups()) if found else (0, 0)
        if not 1 <= index <= count:
            hint = "; shards are counted from 1" if found and index == 0 and count else ""
            raise BenchError(f"--shard {text}: must be I/N with I from 1 to N, such as 1/8{hint}")
        return cls(index, count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass(frozen=True)
class Load:
    """The work of a run in multiply-adds.

    Attributes:
        run_id: of the run.
        network: the network with its weights and preprocessing.
        own: of this run alone.
        shared: of extractions, by key; runs with the same key extract once.
    """

    run_id: str
    own: int = 0
    shared: Mapping[str, int] = field(default_factory=dict)
    network: str = ""


Item = tuple[Load, ...]


def loads_of(resolved: Resolved) -> list[Load]:
    """Return the work of each run of a plan, whatever is finished or cached."""
    images: dict[tuple[str, tuple[str, ...]], dict[str, int]] = {}
    loads = []
    for each in resolved.planned:
        if each.run.task.key not in images:
            splits = resolved.data_of(each.run).splits.values()
            images[each.run.task.key] = {_digest_of_ids(split): len(split.part) for split in splits}
        loads.append(_load(each, images[each.run.task.key]))
    return loads


def _load(planned: Planned, splits: Mapping[str, int]) -> Load:
    """Return the work of a run; splits: digest of ids -> images."""
    run, protocol = planned.run, planned.protocol
    network = _network(run)
    try:
        macs = round(1e9 * facts.count_gmacs(run.network, run.computed_size))
    except BenchError:  # reported with the run
        macs = 0
    layers = protocol.frozen_layers()
    images = {
        digest([network, run.task.dataset, ids, list(layers)]): count
        for ids, count in splits.items()
        if layers
    }
    own = planned.work.forward - sum(images.values()) + int(TRAIN_WORK * planned.work.train)
    return Load(run.run_id, max(own, 0) * macs, {key: n * macs for key, n in images.items()}, network)


def _network(run: Run) -> str:
    """Return a key of a network as it computes features, the same on every machine and for every engine."""
    identity = run.identity()
    names = ("arch", "arch_version", "kwargs", "weights", "preprocessing", "precision")
    parts = {name: identity.get(name) for name in names}
    return digest({**parts, "classes": run.classes, "seed": run.seed if run.weights.random else None})


def _digest_of_ids(split: Split) -> str:
    """Hash the ids of the images; not their times, which differ between machines."""
    hashed = sha256()
    for name in split.part.ids.tolist():
        hashed.update(f"{name}\n".encode("utf-8", "surrogateescape"))
    return hashed.hexdigest()


def work_of(loads: Iterable[Load]) -> int:
    """Return the work of runs that are done together, each extraction once."""
    loads = list(loads)
    shared = {key: work for load in loads for key, work in load.shared.items()}
    return sum(load.own for load in loads) + sum(shared.values())


def items_of(loads: Sequence[Load], count: int) -> list[Item]:
    """Group runs that share extractions; groups above the mean of a shard are split where that pays."""
    waiting = _groups(loads)
    items: list[Item] = []
    while waiting:
        item = waiting.pop()
        total = sum(map(work_of, [item, *waiting, *items]))  # with the extractions that are repeated
        halves = _halves(item) if work_of(item) * count > total else ()
        waiting += halves
        items += [] if halves else [item]
    return items


def _groups(loads: Sequence[Load]) -> list[Item]:
    """Return the connected runs, in an order that does not depend on that of the plan."""
    group_of: dict[str, list[Load]] = {}
    groups: list[list[Load]] = []
    for load in sorted(loads, key=lambda load: load.run_id):
        joined = [load]
        for other in {id(group_of[key]): group_of[key] for key in load.shared if key in group_of}.values():
            joined = [*other, *joined]
            groups = [group for group in groups if group is not other]
        groups.append(joined)
        group_of.update({key: joined for member in joined for key in member.shared})
    return [tuple(sorted(group, key=lambda load: load.run_id)) for group in groups]


def _halves(item: Item) -> tuple[Item, ...]:
    """Split an item in two; empty if the repeated extraction costs more than the split saves."""
    halves: tuple[list[Load], list[Load]] = ([], [])
    for load in sorted(item, key=lambda load: (-load.own, load.run_id)):
        after = [work_of([*half, load]) for half in halves]
        added = [work - work_of(half) for work, half in zip(after, halves, strict=True)]
        halves[min((0, 1), key=lambda k: (after[k], added[k]))].append(load)
    works = [work_of(half) for half in halves]
    saved, repeated = work_of(item) - max(works), sum(works) - work_of(item)
    return tuple(tuple(half) for half in halves) if all(halves) and saved > repeated else ()


def divide(loads: Sequence[Load], count: int) -> list[list[Item]]:
    """Divide runs into shards: each item, largest first, goes to the shard with the least work."""
    shards: list[list[Item]] = [[] for _ in range(count)]
    works, runs = [0] * count, [0] * count
    for item in sorted(items_of(loads, count), key=lambda item: (-work_of(item), item[0].run_id)):
        place = min(range(count), key=lambda k: (works[k], runs[k], k))
        shards[place].append(item)
        works[place] += work_of(item)
        runs[place] += len(item)
    return shards


@dataclass(frozen=True)
class Cut:
    """What a shard is of a plan.

    Attributes:
        shard: which one.
        run_ids: its runs.
        total: the runs of the plan.
        shares: of the work, for each shard.
        plan: a digest of the plan, by which other machines tell whether theirs is the same.
    """

    shard: Shard
    run_ids: frozenset[str]
    total: int
    shares: tuple[float, ...]
    plan: str

    def describe(self) -> str:
        """Describe the shard in one line."""
        share = self.shares[self.shard.index - 1]
        return (
            f"Shard {self.shard} of plan {self.plan}: {len(self.run_ids)} of {counted(self.total, 'run')}, "
            f"{share:.0%} of the work (shards from {min(self.shares):.0%} to {max(self.shares):.0%})"
        )


def of_runs(resolved: Resolved, run_ids: Collection[str]) -> Resolved:
    """Return some runs of a plan, with the images of their tasks."""
    planned = [each for each in resolved.planned if each.run.run_id in run_ids]
    tasks = {each.run.task.key for each in planned}
    return Resolved(planned, {key: data for key, data in resolved.data.items() if key in tasks})


def cut(resolved: Resolved, shard: Shard) -> Cut:
    """Return the runs of a shard of a plan."""
    loads = loads_of(resolved)
    shards = divide(loads, shard.count)
    works = [sum(work_of(item) for item in items) for items in shards]
    mine = frozenset(load.run_id for item in shards[shard.index - 1] for load in item)
    shares = tuple(work / max(sum(works), 1) for work in works)
    return Cut(shard, mine, len(loads), shares, digest(sorted(load.run_id for load in loads))[:8])
