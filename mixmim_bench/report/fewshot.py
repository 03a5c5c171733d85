"""Few-shot curves: scores against the number of training images per class."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import pandas as pd

from mixmim_bench.errors import BenchError, nearest
from mixmim_bench.report.panels import Curve, CurvePanel
from mixmim_bench.report.rows import COLUMN, ROW, VERSIONS, names_of, newest, over_seeds
from mixmim_bench.report.text import one_line

# what is trained on the images: a head of `fewshot`, or `linear` on the variants NAME@5shot of a task
HEADS = {"ridge": "few-shot probe, ridge", "logistic": "few-shot probe, logistic", "linear": "linear probe"}
COLOURED = 9  # models; the others are in the background
OF_SETTING = re.compile(r"(?P<metric>\S+) (?P<head>\w+) (?P<shots>\d+)-shot")
OF_VARIANT = re.compile(r"(?P<task>[^@]+)@(?P<shots>[1-9]\d*)shot")
SHOTS = "Training images per class"


def few_shot_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return scores with few training images: rows with `of_task`, `head`, `shots` and `of_metric` added.

    frame: the long table. Of several versions and settings the newest are taken, as in `leaderboard`.
    """
    whole = ~frame["task"].str.contains("@[1-9][0-9]*shot")  # of which all numbers of shots can be drawn
    few = (frame["protocol"] == "fewshot") | (frame["protocol"] == "linear") & ~whole
    ranked = frame[frame["ranked"] & few]
    ranked = newest(ranked, COLUMN, VERSIONS)
    ranked = newest(ranked, (*ROW, *COLUMN), ["started"], of="setting")
    of_heads = frame[(frame["protocol"] == "fewshot") & whole & frame["run_id"].isin(ranked["run_id"])]
    found = of_heads["metric"].str.extract(f"^{OF_SETTING.pattern}$")
    first = of_heads.assign(of_task=of_heads["task"], of_metric=found["metric"], head=found["head"])
    of_variants = ranked[ranked["protocol"] == "linear"]
    parts = of_variants["task"].str.extract(f"^{OF_VARIANT.pattern}$")
    second = of_variants.assign(of_task=parts["task"], of_metric=of_variants["metric"], head="linear")
    both = pd.concat([first.assign(shots=found["shots"]), second.assign(shots=parts["shots"])])
    both = both[both["shots"].notna()]
    return both.assign(shots=both["shots"].astype("int64"))


def few_shot_panels(
    frame: pd.DataFrame, head: str, titles: Mapping[str, str] | None = None
) -> list[CurvePanel]:
    """Return one panel per task: a curve of each model, in percent; empty without such results.

    Of many models, those with the best mean score at the most shots are in colour.

    Args:
        frame: the long table.
        head: a key of HEADS.
        titles: of tasks by name.
    """
    table = few_shot_table(frame)
    table = table[table["head"] == head]
    if table.empty:
        return []
    names = names_of(table)
    table = table.assign(label=[names[row.model, row.weights, row.precision] for row in table.itertuples()])
    of_tasks = {str(task): _curves(rows) for task, rows in table.groupby("of_task")}
    order = _best_first(list(of_tasks.values()))
    return [
        CurvePanel(
            title=[one_line((titles or {}).get(task, task)), HEADS[head]],
            curves=[_with_place(curves[label], order.index(label)) for label in order if label in curves],
            x_title=SHOTS,
            y_title=f"{table['of_metric'][table['of_task'] == task].iloc[0]} (%)",
            logarithmic=True,
        )
        for task, curves in of_tasks.items()
    ]


def few_shot_panel(frame: pd.DataFrame, task: str, head: str = "") -> CurvePanel:
    """Return the panel of one task and head, by default the first one that has results; raises BenchError."""
    if head and head not in HEADS:
        raise BenchError(f"no head {head!r}; {nearest(head, HEADS)}")
    for each in [head] if head else HEADS:
        rows = few_shot_table(frame)
        ids = rows["run_id"][rows["of_task"] == task]
        if panels := few_shot_panels(frame[frame["run_id"].isin(ids)], each):
            return panels[0]
    known = set(few_shot_table(frame)["of_task"])
    raise BenchError(
        f"no few-shot results of {f'{head} on ' if head else ''}{task}; {nearest(task, known)}; make some: "
        f"mixmim-bench run -t {task} -p fewshot"
    )


def _curves(rows: pd.DataFrame) -> dict[str, Curve]:
    """Return the curves of a task; over several seeds, the mean ± one standard deviation."""
    curves = {}
    for label, of_model in rows.groupby("label"):
        shown = over_seeds(of_model, ["shots"]).sort_values("shots")
        curves[str(label)] = Curve(
            label=str(label),
            x=tuple(map(float, shown["shots"])),
            y=_in_percent(shown["value"]),
            low=_in_percent(shown["low"]),
            high=_in_percent(shown["high"]),
            hollow=bool(of_model["random_init"].all()),
        )
    return curves


def _in_percent(values: pd.Series) -> tuple[float, ...]:
    return tuple(100 * float(value) for value in values)


def _best_first(of_tasks: Sequence[Mapping[str, Curve]]) -> list[str]:
    """Order models by their mean score at the most shots."""
    scores = pd.DataFrame([{label: curve.y[-1] for label, curve in curves.items()} for curves in of_tasks])
    ranks = scores.rank(axis=1, ascending=False, pct=True).mean()
    return sorted(map(str, ranks.index), key=lambda label: (ranks[label], label))


def _with_place(curve: Curve, place: int) -> Curve:
    return dataclasses.replace(curve, pale=place >= COLOURED)
