"""The controls of probes: scores beside those that say nothing of the images, or hardly anything."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mixmim_bench.registry import PIXELS
from mixmim_bench.report.leaderboard import Cell, Column, Leaderboard, Row, leaderboard
from mixmim_bench.report.panels import Curve, CurvePanel
from mixmim_bench.report.text import markdown, markdown_table, one_line
from mixmim_bench.scoring.metrics import METRICS, is_a_guess
from mixmim_bench.specs import NOISE, PERMUTED, RunRecord

EMPTY = f"{NOISE}100"  # nothing is left of the images
# of the gain; images that look alike fail together, so scores of permuted labels exceed their intervals
SUSPICIOUS_SHARE = 0.1
MISSING = "-"
NOTES = (
    "Controls of probes, percent. Chance: guessing evenly. Frequent: always the most frequent classes. "
    "Pixels: the same probe on the image itself, averaged to 32 x 32. Random weights: the same network, "
    "untrained. Permuted: the images of train and val have each other's labels. Noise: that share of the "
    "variance of all images is Gaussian noise; the score should fall to that of the most frequent classes at "
    "100 %."
)
SUSPICIOUS = (
    "! significantly better than always predicting the most frequent classes, by more than a tenth of what "
    "the probe gains over that, although there is nothing to learn: look for copies of images and leaks of "
    "labels."
)


@dataclass(frozen=True, kw_only=True)
class Controlled:
    """A probe of a model with its controls, as fractions; None where one was not run."""

    task: str
    protocol: str
    metric: str
    model: str
    weights: str
    precision: str
    score: Cell
    chance: float | None
    frequent: float | None
    pixels: Cell | None
    random: Cell | None
    permuted: Cell | None
    noise: dict[int, Cell]  # percent -> score

    @property
    def name(self) -> str:
        """The model with its weights, and its precision if that is not float32."""
        precision = "" if self.precision == "float32" else f", {self.precision}"
        return f"{self.model} ({self.weights}{precision})"

    @property
    def suspicious(self) -> list[str]:
        """The variants on which it scores although they hold no signal."""
        blind = {PERMUTED: self.permuted, EMPTY: self.noise.get(100)}
        return [name for name, cell in blind.items() if cell is not None and self._gains(cell)]

    def _gains(self, cell: Cell) -> bool:
        guess = self.frequent or 0.0
        above = cell.value - guess > SUSPICIOUS_SHARE * max(self.score.value - guess, 0.0)
        return above and not all(is_a_guess(record.scores[record.metric]) for record in cell.records)


def controls_of(board: Leaderboard, records: Iterable[RunRecord]) -> list[Controlled]:
    """List the rows and columns of a leaderboard that have controls.

    Args:
        board: without controls.
        records: with those of controls.
    """
    variants = leaderboard(record for record in records if record.control and not record.limited)
    rows = {_key(row): row for row in variants.rows if not row.settings}
    found = []
    for column in board.columns:
        for row in board.rows:
            cell, control = row.cells.get(column), rows.get(_key(row))
            if cell is None or control is None or row.settings:
                continue
            each = _controlled(board, column, row, cell, control)
            if each.permuted is not None or each.noise:
                found.append(each)
    return found


def _key(row: Row) -> tuple[str, str, str]:
    return row.model, row.weights, row.precision


def _controlled(board: Leaderboard, column: Column, row: Row, cell: Cell, control: Row) -> Controlled:
    task, protocol = column
    record = cell.record
    of_variant = {
        each.record.control: each
        for (name, probe), each in control.cells.items()
        if probe == protocol and name == f"{task}@{each.record.control}"
    }
    best = METRICS[record.metric].best
    classes = record.identity["task"].get("num_classes")
    same = [other for other in board.rows if other.precision == row.precision]
    return Controlled(
        task=task,
        protocol=protocol,
        metric=record.metric,
        model=row.model,
        weights=row.weights,
        precision=row.precision,
        score=cell,
        chance=min(1.0, best / classes) if best and classes else None,
        frequent=record.scores[record.metric].get("guess"),
        pixels=_cell_of(same, column, lambda other: other.model == PIXELS),
        random=_cell_of(same, column, lambda other: other.model == row.model and other.random_init),
        permuted=of_variant.get(PERMUTED),
        noise=dict(
            sorted(
                (int(name.removeprefix(NOISE)), each)
                for name, each in of_variant.items()
                if name.startswith(NOISE)
            )
        ),
    )


def _cell_of(rows: Sequence[Row], column: Column, wanted: Callable[[Row], bool]) -> Cell | None:
    cells = [row.cells.get(column) for row in rows if not row.settings and wanted(row)]
    return next((cell for cell in cells if cell is not None), None)


def controls_markdown(controls: Sequence[Controlled]) -> str:
    """Show controls as a Markdown table with notes; '' if there are none."""
    if not controls:
        return ""
    rows = [{key: markdown(text) for key, text in row.items()} for row in shown(controls)]
    return f"{markdown_table(rows)}\n\n{' '.join(notes_of(controls))}"


def notes_of(controls: Sequence[Controlled]) -> list[str]:
    """Return what the columns mean."""
    return [NOTES, *([SUSPICIOUS] if any(each.suspicious for each in controls) else [])]


def shown(controls: Sequence[Controlled]) -> list[dict[str, str]]:
    """Return the rows of the table as plain text."""
    levels = sorted({percent for each in controls for percent in each.noise})
    return [_shown(each, levels) for each in controls]


def _shown(each: Controlled, levels: Sequence[int]) -> dict[str, str]:
    def cell(value: Cell | None, name: str = "") -> str:
        return MISSING if value is None else f"{100 * value.value:.1f}{' !' * (name in each.suspicious)}"

    def share(value: float | None) -> str:
        return MISSING if value is None else f"{100 * value:.1f}"

    return {
        "Task": one_line(f"{each.task} {each.protocol}"),
        "Model": one_line(each.name),
        "Score": cell(each.score),
        "Chance": share(each.chance),
        "Frequent": share(each.frequent),
        "Pixels": cell(each.pixels),
        "Random weights": cell(each.random),
        "Permuted": cell(each.permuted, PERMUTED),
        **{f"Noise {percent} %": cell(each.noise.get(percent), f"{NOISE}{percent}") for percent in levels},
    }


def noise_panels(controls: Sequence[Controlled]) -> list[CurvePanel]:
    """Return a panel per task and probe: scores in percent over the share of noise, one curve per model."""
    columns = dict.fromkeys((each.task, each.protocol) for each in controls if each.noise)
    return [
        _noise_panel([each for each in controls if (each.task, each.protocol) == column and each.noise])
        for column in columns
    ]


def _noise_panel(controls: Sequence[Controlled]) -> CurvePanel:
    first = controls[0]
    record = first.score.record
    models = [each.model for each in controls]

    def shown_whole(each: Controlled) -> bool:
        return models.count(each.model) > 1 or each.precision != "float32"

    curves = []
    for each in controls:
        cells = {0: each.score, **each.noise}
        curves.append(
            Curve(
                label=one_line(each.name if shown_whole(each) else each.model),
                x=tuple(map(float, cells)),
                y=tuple(100 * cell.value for cell in cells.values()),
                low=tuple(100 * cell.low for cell in cells.values()),
                high=tuple(100 * cell.high for cell in cells.values()),
                hollow=each.score.record.random_init,
            )
        )
    if first.frequent is not None:
        frequent = 100 * first.frequent
        curves.append(Curve(label="frequent", x=(0.0, 100.0), y=(frequent, frequent), pale=True))
    return CurvePanel(
        title=[one_line(record.task_title), one_line(record.protocol_title)],
        curves=curves,
        x_title="Noise (% of the variance of the images)",
        y_title=f"{first.metric} (%)",
    )
