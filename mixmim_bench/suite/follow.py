"""The processes that do not lead a job: they take part in the trainings that the main process starts."""

from collections.abc import Iterator
from contextlib import contextmanager

from mixmim_bench import processes
from mixmim_bench.data.dataset import open_task
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import BenchError
from mixmim_bench.machine import Machine
from mixmim_bench.memory import memory_errors
from mixmim_bench.progress import Silent
from mixmim_bench.protocols import build_protocol
from mixmim_bench.specs import Run
from mixmim_bench.suite.execute import fit_and_predict, open_run


@contextmanager
def leading() -> Iterator[None]:
    """Let the followers end when the main process has done its work, also if runs failed.

    After an interruption they are not waiting, and end with the job.
    """
    try:
        yield
    except SystemExit as ended:
        if ended.code in (None, 0, 1):
            processes.broadcast()
        raise
    processes.broadcast()


def call_followers(run: Run) -> None:
    """Let all processes of the job take part in a run, as its protocol trains."""
    if build_protocol(run.protocol, run.task.kind).trains:
        processes.broadcast(run.to_json())


def follow(roots: DataRoots, machine: Machine) -> None:
    """Take part in one run after the other until the main process ends.

    An error that all processes raise ends the run only; any other one ends this process, and with it the job.
    """
    while (text := processes.broadcast()) is not None:
        run = Run.from_json(text)
        data = open_task(run.task, roots)
        bench = open_run(run, data, machine, Silent())
        try:
            with memory_errors(machine):
                fit_and_predict(run, data, bench)
        except BenchError as error:
            if not processes.in_all(error):
                raise
