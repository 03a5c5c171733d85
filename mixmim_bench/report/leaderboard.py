"""Turn records into a leaderboard: one row per model and weights, one column per task and protocol."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from mixmim_bench.scoring.metrics import is_a_guess, lower_is_better
from mixmim_bench.specs import Cost, RunRecord, digest

Column = tuple[str, str]  # task, protocol


@dataclass(frozen=True)
class Cell:
    """A score with its interval as fractions; over several seeds, the mean ± one standard deviation."""

    value: float
    low: float
    high: float
    records: tuple[RunRecord, ...]  # newest first; for a mean over tasks, those of the first task
    tasks: tuple["Cell", ...] = ()  # the scores that a mean over tasks averages

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len(self.records)

    @property
    def record(self) -> RunRecord:
        """The newest of the records."""
        return self.records[0]

    @property
    def skipped(self) -> int:
        """The number of unreadable test images that were skipped."""
        return self.record.counts.get("skipped_test", 0)

    def is_a_guess(self, metric: str = "") -> bool:
        """Return whether a score is not significantly better than predicting the class frequencies."""
        return all(is_a_guess(record.scores[metric or record.metric]) for record in self.records)

    @cached_property
    def key(self) -> str:
        """Identifies the results, also when a run was done again on other bytes."""
        runs = [[r.run_id, r.data_bytes, r.provenance.get("started", "")] for r in self.records]
        return digest(sorted(runs))


@dataclass
class Row:
    """Results of a model with its weights in one precision and, if not the usual ones, other `settings`."""

    model: str
    weights: str
    random_init: bool
    precision: str = "float32"
    settings: str = ""  # differences from the usual settings of the columns
    cells: dict[Column, Cell] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """Describe precision and settings if they are not the usual ones."""
        precision = "" if self.precision == "float32" else self.precision
        return ", ".join(filter(None, [precision, self.settings]))

    def mean_cell(self, tasks: Sequence[str], protocol: str) -> Cell | None:
        """Return the average over some tasks, with the interval of independent scores, None if one misses."""
        cells = [self.cells.get((task, protocol)) for task in tasks]
        there = [cell for cell in cells if cell is not None]
        if not there or len(there) < len(cells):
            return None
        value = sum(cell.value for cell in there) / len(there)
        below = sum((cell.value - cell.low) ** 2 for cell in there) ** 0.5 / len(there)
        above = sum((cell.high - cell.value) ** 2 for cell in there) ** 0.5 / len(there)
        return Cell(value, value - below, value + above, there[0].records, tuple(there))

    def cost(self, costs: Mapping[str, Cost]) -> Cost | None:
        """Return the cost of the model at its own image size, on the machine of the results."""
        keys = [cell.record.costs.get("own", "") for cell in self.cells.values()]
        return next((costs[key] for key in keys if key in costs), None)


@dataclass(frozen=True)
class Mean:
    """An average over the tasks of a suite with the same protocol and ranked metric."""

    suite: str  # '' for tasks of no suite
    protocol: str
    metric: str
    tasks: Sequence[str]  # that it is over
    left_out: Sequence[str]  # that not every row has

    @property
    def over(self) -> str:
        """What it is over: suite, protocol and metric."""
        return " ".join(filter(None, [self.suite, self.protocol, self.metric]))

    @property
    def name(self) -> str:
        """The name of its column."""
        return f"mean {self.over}"

    @property
    def note(self) -> str:
        """Which tasks it is over, and which are left out."""
        return f"{self.name}: over {', '.join(self.tasks)}; not all rows have {', '.join(self.left_out)}."


@dataclass(frozen=True)
class Leaderboard:
    """Rows and columns, the omitted results of older versions, and the newest versions of the metrics."""

    rows: Sequence[Row]
    columns: Sequence[Column]
    omitted: Sequence[RunRecord]
    metric_versions: Mapping[tuple[Column, str], int]

    @property
    def left_out(self) -> int:
        """The number of omitted results."""
        return len(self.omitted)

    @cached_property
    def means(self) -> list[Mean]:
        """The averages over two or more tasks, excluding variants of tasks.

        If rows have different tasks, the average is over the tasks that all rows have; if those are fewer
        than two, it is over all tasks, and blank for rows that miss one.
        """
        plain = [row for row in self.rows if not row.settings]
        groups: dict[tuple[str, str, str], dict[str, set[int]]] = {}  # to the rows that have each task
        for place, row in enumerate(plain):
            for (task, protocol), cell in row.cells.items():
                for suite in self.suites.get(task, ("",)) if "@" not in task else ():
                    group = groups.setdefault((suite, protocol, cell.record.metric), {})
                    group.setdefault(task, set()).add(place)
        averages = []
        for key, tasks in sorted(groups.items()):
            rows = set.union(*tasks.values())
            common = sorted(task for task in tasks if tasks[task] == rows)
            over = common if len(common) > 1 else sorted(tasks)
            if len(over) > 1:
                averages.append(Mean(*key, tasks=over, left_out=sorted(set(tasks) - set(over))))
        return averages

    @cached_property
    def weights(self) -> dict[str, set[str]]:
        """The trained weights of each model."""
        found: dict[str, set[str]] = {}
        for row in self.rows:
            if not row.random_init:
                found.setdefault(row.model, set()).add(row.weights)
        return found

    @cached_property
    def suites(self) -> dict[str, tuple[str, ...]]:
        """The suites of each task; older records do not have them."""
        cells = [(task, cell) for row in self.rows for (task, _), cell in row.cells.items()]
        known = [(task, record) for task, cell in cells for record in cell.records if record.suites]
        known.sort(key=lambda each: each[1].provenance.get("started", ""))
        return {task: record.suites for task, record in known}

    def first(self, column: Column) -> RunRecord:
        """Return the newest record of the first row that a column has, for what all its records share."""
        return next(row.cells[column].record for row in self.rows if column in row.cells)

    def other(self, row: Row, column: Column, metric: str) -> Cell | None:
        """Return the cell of a further metric; None if the row lacks it or its version is older."""
        cell = row.cells.get(column)
        if cell is None or any(metric not in record.scores for record in cell.records):
            return None
        newest = self.metric_versions[column, metric]
        if any(record.metric_version(metric) < newest for record in cell.records):
            return None
        return cell_of(cell.records, metric)

    def skipped(self) -> list[str]:
        """List the columns with skipped test images, and how many."""
        cells = [cell for row in self.rows for cell in row.cells.values() if cell.skipped]
        return sorted({f"{cell.skipped} of {' '.join(column_of(cell.record))}" for cell in cells})

    def machines(self, costs: Mapping[str, Cost]) -> list[str]:
        """List where the speed and memory of the rows were measured."""
        measured = [cost for cost in (row.cost(costs) for row in self.rows) if cost]
        return sorted(
            {f"{cost.device}, {cost.threads} threads, {cost.precision}, {cost.engine}" for cost in measured}
        )

    def disagreements(self) -> list[tuple[Column, str]]:
        """List the further metrics that order the models of a column otherwise than its ranked one."""
        found = []
        for column, metric in self.other_metrics:
            others = [(row, self.other(row, column, metric)) for row in self.rows if not row.settings]
            pairs = [(-row.cells[column].value, -other.value) for row, other in others if other is not None]
            values = [other for _, other in sorted(pairs)]  # ties in any order
            if not lower_is_better(metric) and values != sorted(values):
                found.append((column, metric))
        return found

    @cached_property
    def other_metrics(self) -> list[tuple[Column, str]]:
        """The further scores of tasks by column."""
        metrics = {
            (column, metric): None
            for column in self.columns
            for row in self.rows
            if column in row.cells
            for metric in row.cells[column].record.shown
            if metric != row.cells[column].record.metric
        }
        return list(metrics)


def leaderboard(records: Iterable[RunRecord]) -> Leaderboard:
    """Build the leaderboard, without failed runs.

    A column holds the newest version of its task and protocol with the settings of its newest result: images
    and task are the same for all models, the protocol for those with weights of one kind (random or
    trained), the rest per model. Results with other settings get their own labelled rows. Runs that differ
    only in the seed share a cell; of those that differ only in the version of a further metric, the newest
    are shown.
    """
    finished = [record for record in records if not record.error]
    newest_arch: dict[str, int] = {}
    for record in finished:
        arch = record.identity["arch"]
        newest_arch[arch] = max(record.arch_version, newest_arch.get(arch, 0))
    kept = [record for record in finished if record.arch_version == newest_arch[record.identity["arch"]]]
    newest: dict[Column, tuple[int, int, int]] = {}
    for record in kept:
        newest[column_of(record)] = max(record.versions, newest.get(column_of(record), (0, 0, 0)))
    kept = [record for record in kept if record.versions == newest[column_of(record)]]
    kept.sort(key=lambda record: record.provenance.get("started", ""), reverse=True)

    usual: dict[tuple[Any, ...], dict[str, str]] = {}
    groups: dict[str, list[RunRecord]] = {}
    seen = set()
    for record in kept:
        names = record.setting, record.model, record.weights, record.random_init
        if names not in seen:  # other seeds have the same settings
            seen.add(names)
            for key, values in _settings(record).items():
                usual.setdefault(key, values)
        groups.setdefault(record.setting, []).append(record)
    rows: dict[tuple[str, str, str, str], Row] = {}
    for group in groups.values():
        record, column = group[0], column_of(group[0])
        precision = record.identity["precision"]
        settings = _difference(record, usual)
        blank = Row(record.model, record.weights, record.random_init, precision, settings)
        row = rows.setdefault((record.model, record.weights, precision, settings), blank)
        # there may be newer results that differ in the version of a further metric only
        row.cells.setdefault(column, cell_of(group))
    by_name = [rows[key] for key in sorted(rows, key=lambda key: (*key[:2], key[2] != "float32", *key[2:]))]
    columns = sorted(newest)
    shown = {id(record) for row in by_name for cell in row.cells.values() for record in cell.records}
    omitted = [record for record in finished if id(record) not in shown]
    return Leaderboard(_best_first(by_name, columns), columns, omitted, _metric_versions(by_name))


def _metric_versions(rows: Sequence[Row]) -> dict[tuple[Column, str], int]:
    """Return the newest version of each metric that a column has."""
    newest: dict[tuple[Column, str], int] = {}
    for row in rows:
        for column, cell in row.cells.items():
            for record in cell.records:
                for metric in record.shown:
                    version = record.metric_version(metric)
                    newest[column, metric] = max(version, newest.get((column, metric), version))
    return newest


def part_of(
    board: Leaderboard, is_row: Callable[[Row], bool], is_column: Callable[[Column], bool]
) -> Leaderboard:
    """Return some rows and columns of a leaderboard, ordered by these columns alone."""
    rows = []
    for row in filter(is_row, board.rows):
        cells = {column: cell for column, cell in row.cells.items() if is_column(column)}
        if cells:
            rows.append(dataclasses.replace(row, cells=cells))
    columns = [column for column in board.columns if any(column in row.cells for row in rows)]
    models = {row.model for row in rows}
    omitted = [each for each in board.omitted if each.model in models and is_column(column_of(each))]
    return Leaderboard(_best_first(rows, columns), columns, omitted, board.metric_versions)


def _best_first(rows: Sequence[Row], columns: Sequence[Column]) -> list[Row]:
    """Order rows by mean relative rank over their columns.

    Rows with other settings follow the row of their model.
    """
    ranks: dict[int, list[float]] = {place: [] for place in range(len(rows))}
    for column in columns:
        here = [place for place, row in enumerate(rows) if column in row.cells and not row.settings]
        values = pd.Series([rows[place].cells[column].value for place in here])
        for place, rank in zip(here, values.rank(ascending=False), strict=True):
            ranks[place].append((rank - 0.5) / len(here))
    worst = 2.0
    means = {place: sum(shares) / len(shares) if shares else worst for place, shares in ranks.items()}
    of_model: dict[tuple[str, str], float] = {}
    for place, row in enumerate(rows):
        key = (row.model, row.weights)
        of_model[key] = min(means[place], of_model.get(key, worst))
    order = sorted(
        range(len(rows)),
        key=lambda place: (
            of_model[rows[place].model, rows[place].weights],
            rows[place].model,
            rows[place].weights,
            bool(rows[place].settings),
            place,
        ),
    )
    return [rows[place] for place in order]


def column_of(record: RunRecord) -> Column:
    """Return the column of a record."""
    return record.task, record.protocol


def _settings(record: RunRecord) -> dict[tuple[Any, ...], dict[str, str]]:
    """Return the settings of a result as strings, keyed by what should share them."""
    identity, column = record.identity, column_of(record)
    model = {name: identity[name] for name in identity if name not in _COMMON}
    # versions are not settings: older ones are omitted
    task = {name: value for name, value in identity["task"].items() if name != "metric_versions"}
    return {
        (column, "task"): _flat({"data": identity["data"], **task}),
        (column, record.random_init, "protocol"): _flat(identity["protocol"]),
        (column, record.model, record.weights, identity["precision"]): _flat(model),
    }


_COMMON = ("data", "task", "protocol", "precision", "seed")


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{above}{key}"
        flat.update(_flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: str(value)})
    return flat


def _difference(record: RunRecord, usual: Mapping[tuple[Any, ...], Mapping[str, str]]) -> str:
    """Describe the settings of a result that differ from the usual ones of its column."""
    differing = []
    for key, ours in _settings(record).items():
        theirs = usual[key]
        differing += [
            f"{name}={ours.get(name, '(none)')}"
            for name in {**ours, **theirs}
            if ours.get(name) != theirs.get(name)
        ]
    return f"{' '.join(column_of(record))}: {', '.join(differing)}" if differing else ""


def cell_of(group: Sequence[RunRecord], metric: str = "") -> Cell:
    """Average a metric, by default the ranked one, over the seeds of a run."""
    scores = [record.scores[metric or record.metric] for record in group]
    if len(scores) == 1:
        return Cell(scores[0]["value"], scores[0]["low"], scores[0]["high"], tuple(group))
    values = pd.Series([score["value"] for score in scores])
    mean, deviation = float(values.mean()), float(values.std())
    return Cell(mean, mean - deviation, mean + deviation, tuple(group))
