"""What the records in results/shown give to the docs; used by generate.py."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixmim_bench.errors import BenchError, UnknownName
from mixmim_bench.report.claims import CAPTION, published_figures, published_tables
from mixmim_bench.report.compare import compare, side_of
from mixmim_bench.report.contents import Contents, read_contents
from mixmim_bench.report.controls import controls_markdown
from mixmim_bench.report.leaderboard import Cell, cell_of
from mixmim_bench.report.plots import panels
from mixmim_bench.report.tables import to_frame
from mixmim_bench.report.text import safe_csv
from mixmim_bench.report.write import tables_of
from mixmim_bench.scoring.compare import Pair
from mixmim_bench.specs import RANDOM_INIT, RunRecord
from mixmim_bench.suite.bundles import CLOSE, scored_again
from mixmim_bench.suite.records import RunStore

SHOWN = "results/shown"
FOLDERS = (SHOWN, f"{SHOWN}/card")
SCORE_PLOT = f"{SHOWN}/plots/flops_vs_accuracy"


@dataclass(frozen=True)
class Problem:
    """Something that is not as the records have it.

    Attributes:
        path: the file, from the root of the repository.
        line: its number, 0 for a whole file.
        text: what is wrong.
        stale: whether generating corrects it.
    """

    path: str
    line: int
    text: str
    stale: bool = False

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}" if self.line else f"{self.path}: {self.text}"


class Records:
    """The records of the results folders below a root, read from copies: reading may update intervals."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root, self.scratch = root, scratch
        self.contents: dict[str, Contents] = {}
        for folder in FOLDERS:
            for part in ("runs", "costs"):
                shutil.copytree(root / folder / part, scratch / folder / part)
            self.contents[folder] = read_contents(RunStore(scratch / folder))
        self.runs: dict[str, tuple[RunStore, RunRecord]] = {}
        self._twice: list[Problem] = []
        for contents in self.contents.values():
            for record in contents.records:
                known = self.runs.setdefault(record.run_id, (contents.store, record))
                if known[1] != record:
                    path = self._name(contents.store.runs / f"{record.run_id}.json")
                    other = self._name(known[0].runs)
                    self._twice.append(Problem(path, 0, f"is not the record of this run in {other}"))

    # -- what pages show -------------------------------------------------------------------------------

    def expected(self, kind: str, names: list[str]) -> str:
        """Return what belongs between the comments of a kind; raises BenchError."""
        if kind not in self._kinds:
            raise UnknownName("kind of comment", kind, [*self._kinds, "measured"])
        try:
            return self._kinds[kind](*names)
        except TypeError as error:
            raise BenchError(f"{kind}: {' '.join(names)!r} has too few or too many words") from error

    @property
    def _kinds(self) -> dict[str, Callable[..., str]]:
        return {"score": self.score, "difference": self.difference, "generated": self.block}

    def run(self, run_id: str) -> tuple[RunStore, RunRecord]:
        """Find a run; raises BenchError."""
        if run_id not in self.runs:
            raise UnknownName(f"run in {' or '.join(FOLDERS)}", run_id, self.runs)
        return self.runs[run_id]

    def score(self, run_id: str, metric: str, part: str = "value") -> str:
        """Return a score in percent: its value, low, high, or its value on train; raises BenchError."""
        record = self.run(run_id)[1]
        if part not in ("value", "low", "high", "train"):
            raise UnknownName("part of a score", part, ("value", "low", "high", "train"))
        of_scores = {name: getattr(cell_of([record], name), part, 0.0) for name in record.scores}
        of_metrics = record.train if part == "train" else of_scores
        if metric not in of_metrics:
            raise UnknownName(f"score of run {run_id}", metric, of_metrics)
        return f"{100 * of_metrics[metric]:.1f}"

    def difference(self, first: str, second: str, part: str = "value") -> str:
        """Return the difference of two runs in points, or a bound of its interval; raises BenchError."""
        (a_store, a), (b_store, b) = self.run(first), self.run(second)
        if (a.task, a.metric) != (b.task, b.metric):
            raise BenchError(f"{first} is of {a.task} {a.metric}, and {second} is of {b.task} {b.metric}")
        pair = Pair(a.metric, side_of(a_store, cell_of([a])), side_of(b_store, cell_of([b])))
        parts = {"value": pair.first - pair.second, "low": pair.low, "high": pair.high}
        if part not in parts:
            raise UnknownName("part of a difference", part, parts)
        return f"{100 * parts[part]:+.1f}"

    def block(self, name: str, folder: str, *rest: str) -> str:
        """Return a generated block, with the blank lines that Markdown needs; raises BenchError."""
        blocks: dict[str, Callable[..., str]] = {
            "leaderboard": self.tables,
            "weights": self.weights,
            "controls": self.controls,
        }
        if name not in blocks:
            raise UnknownName("generated block", name, blocks)
        if folder not in self.contents:
            raise UnknownName("results folder", folder, self.contents)
        return f"\n\n{blocks[name](folder, *rest)}\n\n"

    def tables(self, folder: str) -> str:
        """Return the tables of a leaderboard without its notes."""
        return "\n\n".join(
            part for part in tables_of(self.contents[folder]).split("\n\n") if part.startswith("|")
        )

    def controls(self, folder: str) -> str:
        """Return the table of controls with its notes."""
        return controls_markdown(self.contents[folder].controls)

    def weights(self, folder: str, model: str) -> str:
        """Return the scores of a model with trained and with random weights, and their paired differences."""
        contents = self.contents[folder]
        rows = [row for row in contents.board.rows if row.model == model and not row.settings]
        trained = [row for row in rows if not row.random_init]
        if len(trained) != 1 or len(rows) != 2:
            raise BenchError(
                f"{folder} needs {model} with one set of trained weights and with random ones; it has "
                f"{', '.join(row.weights for row in rows) or 'none'}"
            )
        (ours,), (other,) = trained, [row for row in rows if row.random_init]
        lines = [
            f"| task | protocol | {ours.weights} | {RANDOM_INIT} | difference in points |",
            "| --- | --- | --- | --- | --- |",
        ]
        for each in compare(contents.store, f"{model}/{ours.weights}", f"{model}/{other.weights}"):
            cells = [_interval(row.cells[each.task, each.protocol]) for row in (ours, other)]
            points = f"{100 * each.difference:+.1f} ({100 * each.low:+.1f} to {100 * each.high:+.1f})"
            lines.append(f"| {each.task} | {each.protocol} | {' | '.join(cells)} | {points} |")
        return "\n".join(lines)

    # -- files -----------------------------------------------------------------------------------------

    def files(self) -> dict[str, str]:
        """Return the text of every file that is generated as a whole, by its path."""
        found = {f"{SHOWN}/published.md": f"{published_tables()}\n"}
        for folder, contents in self.contents.items():
            found[f"{folder}/leaderboard.md"] = f"{tables_of(contents)}\n"
            found[f"{folder}/leaderboard.csv"] = safe_csv(to_frame(contents.board, contents.costs))
            for path in sorted(contents.store.runs.glob("*.json")):  # with intervals of today's methods
                found[f"{folder}/runs/{path.name}"] = path.read_text("utf-8")
        return found

    def figures(self) -> dict[str, tuple[list[Any], str]]:
        """Return what the figures show, with their captions, by path without suffix."""
        shown = self.contents[SHOWN]
        found = {SCORE_PLOT: (panels(shown.board, shown.costs), "")}
        return found | {f"{SHOWN}/{name}": (drawn, CAPTION) for name, drawn in published_figures().items()}

    def problems(self) -> Iterator[Problem]:
        """List invalid records, and those whose predictions give other scores than they state."""
        yield from self._twice
        for contents in self.contents.values():
            for each in contents.broken:
                name, _, reason = each.partition(" (")
                yield Problem(self._name(Path(name)), 0, self._relative(reason.removesuffix(")")))
        for store, record in self.runs.values():
            try:
                again = scored_again(record, store.arrays(record.run_id))
                for name in again.scores:
                    ours, theirs = (cell_of([each], name) for each in (record, again))
                    for part in ("low", "high"):
                        stated, given = getattr(ours, part), getattr(theirs, part)
                        if abs(stated - given) > CLOSE:
                            raise BenchError(
                                f"{name} {part} is {stated:.5f}, and its predictions give {given:.5f}"
                            )
            except BenchError as error:
                path = self._name(store.runs / f"{record.run_id}.json")
                yield Problem(path, 0, self._relative(str(error)))

    def _relative(self, text: str) -> str:
        return text.replace(f"{self.scratch}{os.sep}", "")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.scratch).as_posix() if path.is_absolute() else path.as_posix()


def _interval(cell: Cell) -> str:
    return f"{100 * cell.value:.1f} ({100 * cell.low:.1f} to {100 * cell.high:.1f})"
