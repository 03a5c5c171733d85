"""Compare two models of the leaderboard wherever both have results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mixmim_bench.errors import BenchError, UnknownName
from mixmim_bench.report.leaderboard import Cell, Row, leaderboard
from mixmim_bench.report.panels import Dot, Dots
from mixmim_bench.report.text import one_line
from mixmim_bench.scoring.compare import Pair, Side, Unit
from mixmim_bench.scoring.predictions import restore
from mixmim_bench.scoring.statistics import holm
from mixmim_bench.specs import RunRecord
from mixmim_bench.suite.records import RunStore

LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A task and protocol: the scores of two models on the n images that both have, and their difference."""

    task: str
    protocol: str
    metric: str
    n: int
    seeds: int  # pairs of seeds or draws that the difference is averaged over
    first: float
    second: float
    difference: float  # first - second, a fraction
    low: float  # its 95 % interval
    high: float
    test: str
    p: float
    p_holm: float  # corrected for the number of comparisons
    detectable: float  # the difference that n images like these would show in 80 % of cases
    verdict: str


def compare(
    store: RunStore, first: str, second: str, say: Callable[[str], None] = lambda _: None
) -> list[Comparison]:
    """Compare two models wherever both have results; a name is MODEL, or MODEL/WEIGHTS if it has several.

    Controls and smoke runs (`--limit`) are left out. `say` is given what could not be compared, and why.
    Raises BenchError for names without results, for models that share no task and protocol, and where nothing
    could be compared.
    """
    records = [record for record in store.records() if not record.control and not record.error]
    board = leaderboard(record for record in records if not record.limited)
    rows = [row for row in board.rows if not row.settings]
    reasons = {
        name: "of smoke runs (--limit) only, which are not compared; run it without --limit"
        for record in records
        if record.limited
        for name in _names(record)
    }
    reasons |= {
        name: f"with other settings than usual only ({row.settings}); run both models with the same ones"
        for row in board.rows
        if row.settings
        for name in _names(row)
    }
    a, b = (_find(rows, name, reasons) for name in (first, second))
    shared = [column for column in board.columns if column in a.cells and column in b.cells]
    if not shared:
        raise BenchError(f"{first} and {second} share no task and protocol; run both on one")
    pairs = {}
    for column in shared:
        try:
            sides = [side_of(store, row.cells[column]) for row in (a, b)]
            pairs[column] = Pair(a.cells[column].record.metric, *sides)
        except BenchError as error:
            if column == shared[-1] and not pairs:
                raise BenchError(f"{' '.join(column)}: {error}") from error
            say(f"{' '.join(column)} is skipped: {error}")
    corrected = holm([pair.p for pair in pairs.values()])
    return [
        Comparison(
            task=task,
            protocol=protocol,
            metric=pair.metric,
            n=pair.n,
            seeds=pair.seeds,
            first=pair.first,
            second=pair.second,
            difference=pair.first - pair.second,
            low=pair.low,
            high=pair.high,
            test=pair.test,
            p=pair.p,
            p_holm=p_holm,
            detectable=pair.detectable,
            verdict=_verdict(first, second, pair, p_holm),
        )
        for ((task, protocol), pair), p_holm in zip(pairs.items(), corrected, strict=True)
    ]


def differences(comparisons: Sequence[Comparison], first: str, second: str) -> Dots:
    """Return the differences in points with their intervals, the largest in favour of the first on top."""
    first, second = one_line(first), one_line(second)
    groups = (f"{first} is better", "no difference shown", f"{second} is better")
    ordered = sorted(comparisons, key=lambda each: (-each.difference, each.task, each.protocol))
    return Dots(
        title=[f"{first} minus {second}"],
        dots=[
            Dot(
                label=one_line(f"{each.task} {each.protocol}"),
                value=100 * each.difference,
                low=100 * each.low,
                high=100 * each.high,
                group=groups[1] if each.p_holm >= LEVEL else groups[0 if each.difference > 0 else 2],
            )
            for each in ordered
        ],
        x_title="difference in points, with its 95 % interval",
        groups=groups,
        zero=True,
    )


def _names(each: Row | RunRecord) -> tuple[str, str]:
    return each.model, f"{each.model}/{each.weights}"


def _find(rows: Sequence[Row], name: str, reasons: Mapping[str, str]) -> Row:
    """Find a row by its name; reasons: why names have no results that are compared."""
    names: dict[str, list[Row]] = {}
    for row in rows:
        for known in _names(row):
            names.setdefault(known, []).append(row)
    if name not in names and name in reasons:
        raise BenchError(f"{name} has results {reasons[name]}")
    if name not in names:
        raise UnknownName("results of", name, names)
    models = names[name]
    if len({row.weights for row in models}) > 1:
        choices = ", ".join(sorted(f"{row.model}/{row.weights}" for row in models))
        raise BenchError(f"{name} has results with several weights; name one of {choices}")
    return models[0]  # float32 before other precisions


def side_of(store: RunStore, cell: Cell) -> Side:
    """Read what was kept of each seed and draw.

    The draws of one random network are not independent, so with several seeds they make one unit.
    """
    units = {}
    for record in cell.records:
        kept = restore(record.identity["task"]["kind"], record.metric, store.arrays(record.run_id))
        seed = record.identity["seed"] or 0
        if record.random_init and cell.seeds > 1:
            units[seed, 0] = Unit(kept.ids, kept.draws)
        else:
            units.update({(seed, draw): Unit(kept.ids, [items]) for draw, items in enumerate(kept.draws)})
    drawn = cell.record.identity["seed"] is not None
    return Side(units, drawn, cell.record.random_init and cell.seeds == 1)


def _verdict(first: str, second: str, pair: Pair, p: float) -> str:
    verdict = _finding(first, second, pair, p)
    if pair.one_seed:
        return f"{verdict} (one seed: the spread of other seeds is not covered)"
    return verdict


def _finding(first: str, second: str, pair: Pair, p: float) -> str:
    if p < LEVEL:
        return f"{first if pair.first > pair.second else second} is better"
    if 0.5**pair.differing >= LEVEL:
        return "too few predictions differ to draw a conclusion"
    such = f"{pair.n} images" + (f" and {pair.seeds} seeds" if pair.seeds > 1 else "")
    if pair.detectable >= 1.0:
        return f"no difference shown; {such} are too few to detect any"
    return f"no difference shown; {such} can detect {100 * pair.detectable:.1f} points or more"
