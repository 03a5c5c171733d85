"""The nodes of a Ray cluster as a driver knows them: what they can do, and what runs ask of them."""

from collections.abc import Mapping, Sequence
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
from mixmim_bench.suite.pool import Queued

CHECK_S = 600.0  # that a node may take to look at itself
MEMORY = 2**30  # bytes of a process with torch
FROZEN, TRAINED = 4, 20  # bytes per parameter: the weights; with gradients, two moments and a checkpoint
NODE_LABEL = "ray.io/node-id"  # which Ray gives each node


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
        self._offers: dict[str, Mapping[str, float]] = {}  # cores and so on
        self._gone: set[str] = set()  # nodes that have died
        self._avoid: dict[str, set[str]] = {}  # run id -> nodes where it failed

    def look(self, setup: Message, driver: Message, runs: Sequence[Run]) -> None:
        """Ask each new node what it can do, say what it cannot, and find nodes that have died.

        setup, driver: for `node.look`.
        """
        alive = {each["NodeID"]: each for each in ray.nodes() if each["Alive"]}
        self._gone |= set(self.found) - set(alive)
        new = {name: each for name, each in alive.items() if name not in self.found}
        if not new:
            return
        if self._gpus is None:
            self._gpus = 1.0 if any(each["Resources"].get("GPU") for each in alive.values()) else 0.0
        unfit = {name: self._unfit(each["Resources"]) for name, each in new.items()}
        answers = _ask([name for name in new if not unfit[name]], setup, driver, runs)
        for name, each in new.items():
            answer = unfit[name] or answers[name]
            if isinstance(answer, str):
                cannot = {run.run_id: answer for run in runs}
                answer = node.Looked(node=name, host=each["NodeManagerHostname"], cannot=cannot)
            self.found[name], self._offers[name] = answer, each["Resources"]
        for name in new:
            self._say_of(name, len(runs))

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
        found = self.found.get(node_id)
        hosts = [each.host for each in self.found.values()]
        if found is None or hosts.count(found.host) > 1:
            return f"{found.host if found else 'node'} {node_id[:6]}"
        return found.host

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
        offered = [self._offers[name] for name in nodes]
        gpus = self._gpus or 0.0
        cores = min(found["CPU"] * min(1.0, gpus / found["GPU"] if gpus else 1.0) for found in offered)
        least = min(found.get("memory", 0.0) for found in offered)
        return {
            "num_cpus": self._threads or max(1, int(cores)),
            "num_gpus": gpus,
            "memory": int(min(_memory(each), 0.9 * least)),
        }


def _ask(
    names: Sequence[str], setup: Message, driver: Message, runs: Sequence[Run]
) -> dict[str, node.Looked | str]:
    """Let nodes look at themselves; returns what each has found, or why it has not answered."""
    if not names:
        return {}
    texts: Any = ray.put([run.to_json() for run in runs])
    looking = {
        ray.remote(node.look)
        .options(num_cpus=0, max_retries=0, label_selector={NODE_LABEL: name})
        .remote(setup, driver, texts): name
        for name in names
    }
    done, late = ray.wait(list(looking), num_returns=len(looking), timeout=CHECK_S)
    answers: dict[str, node.Looked | str] = {}
    for ref in done:
        try:
            answers[looking[ref]] = ray.get(ref)
        except exceptions.RayError as error:
            answers[looking[ref]] = reason_of(error)
    for ref in late:
        ray.cancel(ref, force=True)
        answers[looking[ref]] = f"it has not answered for {CHECK_S:.0f} s"
    return answers


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
