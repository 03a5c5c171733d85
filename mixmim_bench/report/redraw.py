"""Figures as files, drawn only when what they show has changed."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from mixmim_bench.atomic import read_json, write_whole
from mixmim_bench.errors import BenchError
from mixmim_bench.report.panels import CurvePanel, Dots, Figures, Matrix
from mixmim_bench.specs import digest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mixmim_bench.report.background import Background

VERSION = 5  # raised when the same values are drawn in another way
FORMATS = ("png", "svg", "pdf")


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


def draw_if_changed(
    drawn: Figures, folder: Path, name: str, caption: str = "", background: "Background | None" = None
) -> list[Path]:
    """Draw a figure into `folder/NAME.*`, or remove these files if it has no panels.

    Files that were drawn from the same values and not modified since are left as they are. With a
    background, the others are written when it has finished.
    """
    paths = [folder / f"{name}.{kind}" for kind in FORMATS]
    note = folder / f".{name}.json"
    if not drawn:
        for path in (*paths, note):
            path.unlink(missing_ok=True)  # of removed results
        return []
    versions = [VERSION, metadata.version("matplotlib"), metadata.version("adjustText")]
    parts = drawn if isinstance(drawn, Sequence) else [drawn]
    drawn_from = digest([*versions, caption, *map(dataclasses.asdict, parts)], 32)
    if read_json(note) != {"drawn_from": drawn_from, "files": _stats(paths)}:
        note.unlink(missing_ok=True)
        job = Job(drawn, caption, paths)

        def write_note() -> None:
            write_whole(note, json.dumps({"drawn_from": drawn_from, "files": _stats(paths)}).encode())

        if background is not None:
            background.add(job, write_note)
        else:
            job.draw()
            write_note()
    return paths


def check_format(path: Path) -> None:
    """Check that a figure can be written in the format of a file name; raises BenchError."""
    if path.suffix[1:] not in FORMATS:
        raise BenchError(f"{path} is not the name of a plot; it must end in .{', .'.join(FORMATS)}")


def draw_to(drawn: Figures, path: Path) -> None:
    """Draw a figure into one file; raises BenchError."""
    check_format(path)
    try:
        Job(drawn, "", [path]).draw()
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror}") from error


def _stats(paths: Sequence[Path]) -> list[list[int]]:
    """Return size and time of each file, empty for one that is missing."""
    stats = [path.stat() if path.exists() else None for path in paths]
    return [[stat.st_size, stat.st_mtime_ns] if stat else [] for stat in stats]
