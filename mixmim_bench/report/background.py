"""Draw large figures in processes of their own, while this one does something else.

    python -m mixmim_bench.report.background < JOB

draws a pickled job. If a process fails, its figure is drawn here, where the error shows.
"""

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

from mixmim_bench import processes
from mixmim_bench.report.panels import Panel
from mixmim_bench.report.redraw import Job

LARGE = 1000  # points; a process needs as long to start as to draw 300


class Background:
    """Figures to draw: large ones at once, in processes of their own, the others by `finish`."""

    def __init__(self) -> None:
        self._jobs: list[tuple[subprocess.Popen[bytes] | None, Job, Callable[[], None]]] = []

    def add(self, job: Job, done: Callable[[], None]) -> None:
        """Add a figure; `finish` calls `done` when its files are written."""
        panels = job.drawn if isinstance(job.drawn, Sequence) else []
        large = sum(len(panel.points) for panel in panels if isinstance(panel, Panel)) >= LARGE
        self._jobs.append((_start(job) if large else None, job, done))

    def finish(self) -> None:
        """Wait until every figure is drawn."""
        for child, job, done in self._jobs:
            if child is None or child.wait() != 0:
                job.draw()
            done()
        self._jobs.clear()

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, *error: object) -> None:
        """After an error, end the processes."""
        for child, _, _ in self._jobs:
            if child is not None:
                child.kill()
                child.wait()


def _start(job: Job) -> "subprocess.Popen[bytes]":
    with tempfile.TemporaryFile() as file:
        pickle.dump((job.drawn, job.caption, job.paths), file)
        file.seek(0)
        return subprocess.Popen(
            [sys.executable, "-m", "mixmim_bench.report.background"],
            stdin=file,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=processes.environment_of_one(),
        )


if __name__ == "__main__":
    Job(*pickle.load(sys.stdin.buffer)).draw()
