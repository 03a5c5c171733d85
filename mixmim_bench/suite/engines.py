"""Choose the inference engine of each network of a plan.

All runs of a network (a model with its weights, at one size) use one engine. It depends on the whole plan,
finished runs included, so that a command that was interrupted makes the same choice again.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from mixmim_bench import facts
from mixmim_bench.data.dataset import Split, TaskData
from mixmim_bench.errors import BenchError
from mixmim_bench.features.engines import check_engine, choose_engine, open_reader, usable_engines
from mixmim_bench.features.keys import entry_of, key_of_network
from mixmim_bench.features.networks import source_of
from mixmim_bench.machine import Machine
from mixmim_bench.protocols.workbench import layers_to_read
from mixmim_bench.specs import AUTO, TORCH, Run, RunRecord, digest
from mixmim_bench.suite.plan import Planned
from mixmim_bench.suite.resolve import Resolved


def with_engines(
    resolved: Resolved, finished: Mapping[str, RunRecord], machine: Machine, engine: str
) -> Resolved:
    """Set the engine of every run; finished ones have that of their record. Raises BenchError.

    With 'auto', an engine that has computed the features of a network is used again.
    """
    check_engine(engine, machine)
    usable = usable_engines(machine)
    chosen = {}
    for key, members in _by_network(resolved.planned).items():
        chosen[key] = engine
        if engine == AUTO:
            pending = [each for each in members if each.run.run_id not in finished]
            cached = [name for name in usable if _has_features(resolved, pending, name)]
            chosen[key] = cached[0] if cached else choose_engine(machine, _work(members))
    planned = []
    for each in resolved.planned:
        record = finished.get(each.run.run_id)
        name = chosen[network_of(each.run)] if record is None else record.engine
        name = name if name in usable else TORCH
        planned.append(dataclasses.replace(each, run=dataclasses.replace(each.run, engine=name)))
    return dataclasses.replace(resolved, planned=planned)


def try_engines(
    resolved: Resolved, machine: Machine, say: Callable[[str], None]
) -> tuple[Resolved, dict[str, str]]:
    """Convert networks whose features are needed; those that an engine cannot compute are left to torch.

    Returns:
        The plan, and the reason for each network that was left to torch.
    """
    reasons: dict[str, str] = {}
    tried = set()
    for each in resolved.planned:
        run, data = each.run, resolved.data_of(each.run)
        key = network_of(run)
        if run.engine == TORCH or key in reasons or not each.protocol.frozen_layers():
            continue
        if _is_cached(each, data, run.engine, list(data.splits)):
            continue
        layers = tuple(layers_to_read(run))
        if (key, layers) in tried:
            continue
        tried.add((key, layers))
        try:
            _open(run, layers, data, machine)
        except BenchError as error:  # if it is not the engine's, torch will fail too
            reasons[key] = f"features are computed by torch: {error}"
            say(f"{run.model.name}: {reasons[key]}")
    planned = [
        dataclasses.replace(each, run=dataclasses.replace(each.run, engine=TORCH))
        if network_of(each.run) in reasons
        else each
        for each in resolved.planned
    ]
    return dataclasses.replace(resolved, planned=planned), reasons


def _open(run: Run, layers: Sequence[str], data: TaskData, machine: Machine) -> None:
    open_reader(run.engine, source_of(run, layers, _first(data).part.images), machine)


def network_of(run: Run) -> str:
    """Return the key of the network of a run."""
    return digest({**key_of_network(run), "size": list(run.size)})


def _by_network(planned: Sequence[Planned]) -> dict[str, list[Planned]]:
    groups: dict[str, list[Planned]] = {}
    for each in planned:
        groups.setdefault(network_of(each.run), []).append(each)
    return groups


def _work(members: Sequence[Planned]) -> float:
    """Return the GMACs of the forward passes through frozen networks; the runs of a task share features."""
    images: dict[str, int] = {}
    for each in [each for each in members if each.protocol.frozen_layers()]:
        name = each.run.task.name
        images[name] = max(images.get(name, 0), each.work.forward)
    run = members[0].run
    try:
        return facts.count_gmacs(run.model, run.size) * sum(images.values())
    except BenchError:  # reported with the run
        return 0.0


def _has_features(resolved: Resolved, pending: Sequence[Planned], engine: str) -> bool:
    """Return whether the features of train (or test alone) that runs need are cached, and there are any."""
    needed = [each for each in pending if each.protocol.frozen_layers()]
    return bool(needed) and all(
        _is_cached(each, data, engine, [_first(data).role])
        for each, data in [(each, resolved.data_of(each.run)) for each in needed]
    )


def _first(data: TaskData) -> Split:
    return next(iter(data.splits.values()))


def _is_cached(each: Planned, data: TaskData, engine: str, roles: Sequence[str]) -> bool:
    run = dataclasses.replace(each.run, engine=engine)
    layers = facts.resolve_layers(run.model, run.size, each.protocol.frozen_layers())
    return all(
        entry_of(run, data.splits[role], layer).manifest() is not None for role in roles for layer in layers
    )
