"""Draw large figures in processes of their own, while this one does something else.

    python -m mixmim_bench.report.background < JOB

draws a pickled job. If a process fails, its figure is drawn here, where the error shows.
"""

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mixmim_bench import processes
from mixmim_bench.report.panels import CurvePanel, Dots, Figures, Matrix, Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGE = 1000  # points; a process needs as long to start as to draw 300


@dataclass(frozen=True)
class Job:
    """A figure and its files, in the formats of their suffixes."""

    drawn: Figures
    caption: str
    paths: Sequence[Path]

    def draw(self) -> None:
        """Draw the figure and write its files."""
        from mixmim_bench.report.style import save

        save(figure_of(self.drawn, self.caption), self.paths)


def figure_of(drawn: Figures, caption: str = "") -> "Figure":
    """Draw a figure."""
    if isinstance(drawn, Dots):
        from mixmim_bench.report.dots import draw_dots

        return draw_dots(drawn)
    if isinstance(drawn, Matrix):
        from mixmim_bench.report.matrix import draw_matrix

        return draw_matrix(drawn)
    if isinstance(drawn[0], CurvePanel):
        from mixmim_bench.report.curves import draw_curves

        return draw_curves([panel for panel in drawn if isinstance(panel, CurvePanel)], caption)
    from mixmim_bench.report.drawing import draw

    return draw([panel for panel in drawn if not isinstance(panel, CurvePanel)], caption)


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
