"""Write the leaderboard and plots of a results folder from its records."""

import dataclasses
import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from mixmim_bench.atomic import write_whole
from mixmim_bench.errors import BenchError, nearest
from mixmim_bench.report.background import Background
from mixmim_bench.report.claims import beside
from mixmim_bench.report.contents import Contents, read_contents
from mixmim_bench.report.controls import controls_markdown
from mixmim_bench.report.frame import to_long
from mixmim_bench.report.latex import to_latex
from mixmim_bench.report.leaderboard import Column, Row, part_of
from mixmim_bench.report.marks import marks_of
from mixmim_bench.report.page import to_html
from mixmim_bench.report.pictures import draw_finished, links
from mixmim_bench.report.plots import write_few_shot, write_noise, write_plots
from mixmim_bench.report.runs import is_one
from mixmim_bench.report.tables import to_frame, to_markdown
from mixmim_bench.report.text import safe_csv
from mixmim_bench.specs import Cost
from mixmim_bench.suite.records import RunStore

if TYPE_CHECKING:
    from mixmim_bench.suite.session import Session

NOTHING = "No run is finished yet."
SMOKE = (
    "Smoke runs (`--limit`), on a few images: they show that everything works, and their scores mean little. "
    "`mixmim-bench results prune --limited` removes them."
)


@dataclass(frozen=True)
class Report:
    """The written table and files, and the invalid records."""

    markdown: str
    paths: list[Path]
    broken: list[str]  # files, with the reason


def _write_parquet(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the long table with its types, if pyarrow is installed."""
    if importlib.util.find_spec("pyarrow") is None:
        return []
    path, written = folder / "results.parquet", io.BytesIO()
    frame.to_parquet(written, index=False)
    write_whole(path, written.getvalue())
    return [path]


def report_session(session: "Session", say: Callable[[str], None]) -> Report:
    """Draw the runs of a session that have no picture yet, and write the report; raises BenchError."""
    draw_finished(session.store, session.records(), session.resolved.data.values(), say)
    return write_report(session.store)


def write_report(store: RunStore, published: bool = False) -> Report:
    """Write leaderboard.csv, .md, .tex, results.csv, .parquet, report.html and plots; raises BenchError.

    Smoke runs (`--limit`) are in limited.md only.

    Args:
        store: the results folder.
        published: whether results that others have published are added, apart from the measured ones.
    """
    contents = read_contents(store)
    records, board, smoke, costs = contents.records, contents.board, contents.smoke, contents.costs
    paths = [store.folder / name for name in ("leaderboard.csv", "leaderboard.md", "results.csv")]
    with store.writing(), Background() as background:
        plots = write_plots(board, costs, store.folder / "plots", published, background)
        frame = to_long(records, costs)
        page = to_html(contents, published)
        markdown = tables_of(contents, published)
        write_whole(paths[0], safe_csv(to_frame(board, costs)).encode())
        write_whole(paths[1], f"{markdown}{links(store, records)}\n".encode())
        write_whole(paths[2], safe_csv(frame).encode())
        write_whole(store.folder / "report.html", page.encode())
        contents.pairs.save()
        write_whole(store.folder / "leaderboard.tex", f"{to_latex(board, costs, contents.marks)}\n".encode())
        paths.append(store.folder / "report.html")
        paths += [store.folder / "leaderboard.tex", *_write_parquet(frame, store.folder), *plots]
        paths += write_few_shot(board, frame, store.folder / "plots")
        paths += write_noise(contents.controls, store.folder / "plots")
        limited = store.folder / "limited.md"
        if smoke.rows:
            table = f"{SMOKE}\n\n{to_markdown(smoke, costs)}"
            write_whole(limited, f"{table}\n".encode())
            paths.append(limited)
            markdown = table if markdown == NOTHING else f"{markdown}\n\n{table}"
        else:
            limited.unlink(missing_ok=True)
        background.finish()
    return Report(markdown, paths, contents.broken)


def tables_of(contents: Contents, published: bool = False) -> str:
    """Return the leaderboard and the table of controls as Markdown; published: and results of others."""
    tables = [NOTHING]
    if contents.board.rows:
        tables = [to_markdown(contents.board, contents.costs, contents.marks)]
    if contents.controls:
        tables.append(controls_markdown(contents.controls))
    if published and (others := beside(contents.board)):
        tables.append(others)
    return "\n\n".join(tables)


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which rows and columns of a leaderboard are wanted, and in which order.

    Attributes:
        models, tasks, protocols: names or globs; empty for all.
        suites: of tasks.
        max_params_m: of a model, in millions; 0: any.
        max_gmacs: of a model at its own size; 0: any.
        sort: a column, `TASK PROTOCOL`; by default, the best mean rank first.
    """

    models: Sequence[str] = ()
    tasks: Sequence[str] = ()
    protocols: Sequence[str] = ()
    suites: Sequence[str] = ()
    max_params_m: float = 0.0
    max_gmacs: float = 0.0
    sort: str = ""


def filtered(store: RunStore, wanted: Filter) -> str:
    """Return a part of the leaderboard as Markdown; writes nothing. Raises BenchError for an unknown column.

    Versions and usual settings are those of the whole leaderboard. Rows without a measured cost are left out
    if a cost is limited.
    """
    contents = read_contents(store, save=False)
    whole, costs = contents.board, contents.costs

    def is_row(row: Row) -> bool:
        return is_one(row.model, wanted.models) and _affordable(row, costs, wanted)

    def is_column(column: Column) -> bool:
        task, protocol = column
        of_suite = not wanted.suites or bool(set(wanted.suites) & set(whole.suites.get(task, ())))
        return of_suite and is_one(task, wanted.tasks) and is_one(protocol, wanted.protocols)

    board = part_of(whole, is_row, is_column)
    if wanted.sort:
        columns = {" ".join(column): column for column in filter(is_column, whole.columns)}
        if wanted.sort not in columns:
            raise BenchError(f"no column {wanted.sort!r}; {nearest(wanted.sort, columns)}")
        column = columns[wanted.sort]
        rows = sorted(board.rows, key=lambda row: -row.cells[column].value if column in row.cells else 1.0)
        board = dataclasses.replace(board, rows=rows)
    return to_markdown(board, costs, marks_of(board, contents.pairs)) if board.rows else NOTHING


def _affordable(row: Row, costs: Mapping[str, Cost], wanted: Filter) -> bool:
    limits = (("params_m", wanted.max_params_m), ("gmacs", wanted.max_gmacs))
    cost = row.cost(costs)
    return all(not most or (cost is not None and getattr(cost, name) <= most) for name, most in limits)
