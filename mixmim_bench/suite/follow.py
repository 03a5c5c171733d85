"""The processes that do not lead a job: they take part in what the main process starts."""

from mixmim_bench import processes
from mixmim_bench.data.dataset import open_task
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import BenchError
from mixmim_bench.machine import Machine
from mixmim_bench.memory import memory_errors
from mixmim_bench.progress import Silent
from mixmim_bench.protocols import build_protocol
from mixmim_bench.protocols.workbench import Shelf
from mixmim_bench.specs import Run
from mixmim_bench.suite.execute import fit_and_predict, open_run


def call_followers(run: Run) -> None:
    """Let all processes of the job take part in a run, as its protocol trains."""
    if build_protocol(run.protocol, run.task.kind).trains:
        processes.broadcast({"run": run.to_json()})


def follow(roots: DataRoots, machine: Machine) -> None:
    """Take part in one run after the other until the main process ends: in trainings and extractions.

    An error that all processes raise ends the run only; any other one ends this process, and with it the job.
    """
    shelf = Shelf()
    while (message := processes.broadcast()) is not None:
        run = Run.from_json(message["run"])
        try:
            data = open_task(run.task, roots)
            bench = open_run(run, data, machine, Silent(), shelf)
            with memory_errors(machine):
                if "layers" in message:
                    bench.help_to_extract(data.splits[message["role"]], message["layers"])
                else:
                    fit_and_predict(run, data, bench)
        except BenchError as error:
            if "layers" not in message and not processes.in_all(error):
                raise
