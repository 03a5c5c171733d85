"""The nodes of a Ray cluster as a driver knows them: what they can do, and what runs ask of them."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import exceptions

from mixmim_bench import facts
from mixmim_bench.errors import BenchError, counted
from mixmim_bench.progress import View
from mixmim_bench.specs import Run
from mixmim_bench.suite import node
from mixmim_bench.suite.channel import Message
from mixmim_bench.suite.fleet import Cluster
from mixmim_bench.suite.queued import Queued

CHECK_S = 600.0  # that a node may take to look at itself
MEMORY = 2**30  # bytes of a process with torch
FROZEN, TRAINED = 4, 20  # bytes per parameter: the weights; with gradients, two moments and a checkpoint
NODE_LABEL = "ray.io/node-id"  # which Ray gives each node


@dataclass(frozen=True)
class _Asked:
    """A node that is looking at itself.

    Attributes:
        name: its id.
        runs: that it was asked about.
        until: when it must have answered, in the time of `time.monotonic`.
    """

    name: str
    runs: Sequence[Run]
    until: float = field(default_factory=lambda: time.monotonic() + CHECK_S)


class Nodes:
    """What each node has found out about itself, by its id.

    Attributes:
        found: of all nodes that have been asked, also those that have died.
    """

    def __init__(self, cluster: Cluster, view: View) -> None:
        self.found: dict[str, node.Looked] = {}
        self._view = view
        self._gpus = cluster.gpus_per_run
        self._threads: int = cluster.settings.get("threads") or 0
        self._about: dict[str, Mapping[str, Any]] = {}  # what Ray says of all nodes that were ever seen
        self._gone: set[str] = set()  # nodes that have died
        self._avoid: dict[str, set[str]] = {}  # run id -> nodes where it failed
        self._asked: dict[Any, _Asked] = {}  # by the reference to their answer

    def look(self, setup: Message, driver: Message, runs: Sequence[Run], wait: bool = False) -> None:
        """Ask each new node what it can do, find nodes that have died, and say what has been answered.

        setup, driver: for `node.look`. wait: until all have answered.
        """
        alive = {each["NodeID"]: each for each in ray.nodes() if each["Alive"]}
        self._gone |= set(self.found) - set(alive)
        if self._gpus is None:
            self._gpus = 1.0 if any(each["Resources"].get("GPU") for each in alive.values()) else 0.0
        new = [_Asked(name, runs) for name in alive if name not in self._about]
        self._about |= alive
        texts: Any = ray.put([run.to_json() for run in runs]) if new else None
        for each in new:
            if reason := self._unfit(alive[each.name]["Resources"]):
                self._settle(each, reason)
            else:
                ask = ray.remote(node.look).options(
                    num_cpus=0, max_retries=0, label_selector={NODE_LABEL: each.name}
                )
                self._asked[ask.remote(setup, driver, texts)] = each
        if self._asked:
            self._hear(alive, CHECK_S if wait else 0.0)

    def _hear(self, alive: Collection[str], timeout_s: float) -> None:
        """Take what nodes have answered, and give up those that do not answer."""
        answered, late = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=timeout_s)
        for ref in answered:
            asked = self._asked.pop(ref)
            try:
                self._settle(asked, ray.get(ref))
            except exceptions.RayError as error:
                self._settle(asked, reason_of(error))
        for ref in late:
            is_dead = self._asked[ref].name not in alive
            if is_dead or time.monotonic() >= self._asked[ref].until:
                ray.cancel(ref, force=True)
                reason = "it has died" if is_dead else f"it has not answered for {CHECK_S:.0f} s"
                self._settle(self._asked.pop(ref), reason)

    def _settle(self, asked: _Asked, answer: node.Looked | str) -> None:
        """Keep and say what a node has answered, or why it can do none of the runs."""
        if isinstance(answer, str):
            cannot = {run.run_id: answer for run in asked.runs}
            answer = node.Looked(node=asked.name, host=self._host(asked.name), cannot=cannot)
        self.found[asked.name] = answer
        self._say_of(asked.name, len(asked.runs))

    @property
    def asking(self) -> bool:
        """Whether some nodes have not answered yet."""
        return bool(self._asked)

    def _unfit(self, resources: Mapping[str, float]) -> str:
        """Say why a node cannot do any run, by what it offers to tasks; '' if it can."""
        cores, gpus, threads = resources.get("CPU", 0.0), resources.get("GPU", 0.0), self._threads
        if cores < 1:
            return "it offers no core to tasks"
        if threads > cores:
            return f"it offers {counted(int(cores), 'core')}, and --threads asks for {threads}"
        if gpus < (self._gpus or 0.0):
            return f"it offers {counted(int(gpus), 'GPU')}, and a run needs {self._gpus:g}"
        return ""

    def _say_of(self, node_id: str, runs: int) -> None:
        found, name = self.found[node_id], self.name(node_id)
        for remark in found.remarks:
            self._view.say(f"{name}: {remark}")
        reasons: dict[str, int] = {}
        for reason in found.cannot.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        for reason, count in reasons.items():
            what = "it is left out" if count == runs else f"without {counted(count, 'run')}"
            self._view.say(f"{name}: {what}: {reason}")

    def name(self, node_id: str) -> str:
        """Return the host of a node, with some of its id if the host has several."""
        host = self._host(node_id)
        several = [self._host(other) for other in self._about].count(host) > 1
        return f"{host} {node_id[:6]}" if several else host

    def _host(self, node_id: str) -> str:
        return str(self._about[node_id]["NodeManagerHostname"]) if node_id in self._about else "node"

    def avoid(self, run_id: str, node_id: str) -> None:
        """Try a run on other nodes from now on, if there are some."""
        self._avoid.setdefault(run_id, set()).add(node_id)

    def able(self, run_id: str) -> list[str]:
        """Return the nodes that can do a run, without those to be avoided if others can."""
        able = [
            name for name, each in self.found.items() if name not in self._gone and run_id not in each.cannot
        ]
        return [name for name in able if name not in self._avoid.get(run_id, ())] or able

    def why_not(self, run_id: str) -> str:
        """Say why no node can do a run."""
        reasons = {each.cannot.get(run_id, "it has died") for each in self.found.values()}
        return "; ".join(sorted(reasons))

    def check_some(self, run_ids: Sequence[str]) -> None:
        """Raise BenchError if no node can do any of some runs."""
        if not any(map(self.able, run_ids)):
            reasons = sorted({f"{each.host}: {self._reason(each)}" for each in self.found.values()})
            raise BenchError(f"no node of the cluster can do any of the runs: {'; '.join(reasons)}")

    def _reason(self, found: node.Looked) -> str:
        return next(iter(found.cannot.values()), "it has died")

    def needs(self, each: Queued, nodes: Sequence[str]) -> dict[str, Any]:
        """Return what a run asks of some nodes: all cores of one, or those that belong to its GPUs."""
        offered = [self._about[name]["Resources"] for name in nodes]
        gpus = self._gpus or 0.0
        cores = min(found["CPU"] * min(1.0, gpus / found["GPU"] if gpus else 1.0) for found in offered)
        least = min(found.get("memory", 0.0) for found in offered)
        return {
            "num_cpus": self._threads or max(1, int(cores)),
            "num_gpus": gpus,
            "memory": int(min(_memory(each), 0.9 * least)),
        }


def _memory(each: Queued) -> float:
    """Estimate the bytes that a run needs."""
    run, planned = each.job.run, each.estimate.planned
    parameters = facts.count_parameters(run.model) * (TRAINED if planned.protocol.trains else FROZEN)
    features = 0 if planned.protocol.trains else facts.feature_width(run.model) * planned.work.forward
    return MEMORY + parameters + 2 * 4.0 * features


def reason_of(error: Exception) -> str:
    """Describe what Ray says of a task in one line."""
    cause = getattr(error, "cause", None)
    if isinstance(error, exceptions.RayTaskError) and isinstance(cause, BenchError):
        return str(cause)
    return f"{type(error).__name__}: {first_line(cause or error).partition('. ')[0]}"


def first_line(error: Exception) -> str:
    """Return the first line of a message."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
