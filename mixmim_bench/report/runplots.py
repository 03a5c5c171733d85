"""Plots of a single run: what was chosen on val, how training went, scores of classes and confusions."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixmim_bench.errors import BenchError, nearest
from mixmim_bench.report.panels import Curve, CurvePanel, Dot, Dots, Figures, Line, Matrix
from mixmim_bench.report.redraw import draw_if_changed
from mixmim_bench.report.runs import SHORT
from mixmim_bench.report.text import cut, one_line
from mixmim_bench.scoring.classes import confusions, metric_of_classes, scores_of_classes
from mixmim_bench.specs import RunRecord
from mixmim_bench.suite.records import RunStore

MATRIX = 40  # classes of a confusion matrix; of more, the most frequent confusions are listed
CONFUSIONS = 25
LISTED = 60  # classes with their scores; of more, the best and the worst half of so many
POINTS = 200  # of the curve of a training
# what is tried on val: its title, and whether its axis is logarithmic
TRIED = {
    "C": "C (inverse of the L2 penalty)",
    "base_lr": "base learning rate",
    "k": "neighbours (k)",
}
GROUPED = ("layer", "stages", "epochs")  # one curve each


class NotThere(BenchError):
    """A run has no data for a plot; the message says why."""


def figures_of(store: RunStore, record: RunRecord, what: str = "") -> dict[str, Figures]:
    """Return the figures of a run by name: all that it has data for, or the one asked for.

    Raises:
        BenchError: the run failed, its predictions cannot be read, there is no such plot, or the run has no
            data for it.
    """
    if what and what not in FIGURES:
        raise BenchError(f"no plot {what!r} of a run; {nearest(what, FIGURES)}")
    about = f"run {record.run_id[:SHORT]} ({record.model} · {record.task} · {record.protocol})"
    if record.error:
        raise BenchError(f"{about} failed, so there is nothing to draw: {record.error}")
    found, reasons = {}, {}
    arrays = store.arrays(record.run_id)
    for name, make in FIGURES.items():
        try:
            found[name] = make(store, record, arrays)
        except NotThere as reason:
            reasons[name] = str(reason)
    wanted = {name: figure for name, figure in found.items() if what in ("", name)}
    if not wanted:
        has = f"; it has: {', '.join(found)}" if found else ""
        raise BenchError(f"{about} has no {NAMES.get(what, 'plots')}: {'; '.join(_of(reasons, what))}{has}")
    return wanted


def _of(reasons: Mapping[str, str], what: str) -> list[str]:
    return [reason for name, reason in reasons.items() if what in ("", name)]


def write_run_plots(
    store: RunStore, record: RunRecord, what: str = "", folder: Path | None = None
) -> list[Path]:
    """Draw the figures of a run as PNG, SVG and PDF, by default into its folder in the results; their paths.

    Raises:
        BenchError: as `figures_of`, or the folder cannot be written to.
    """
    folder = folder or store.plots_of(record.run_id)
    written = []
    for name, figure in figures_of(store, record, what).items():
        try:
            written += draw_if_changed(figure, folder, f"{name}_{record.run_id[:SHORT]}")
        except OSError as error:
            raise BenchError(f"plots cannot be written to {folder}: {error.strerror}") from error
    return written


def _title(record: RunRecord) -> list[str]:
    """Say which run it is: its model with weights, and what it was run on."""
    return [
        one_line(f"{record.model} ({record.weights})"),
        one_line(f"{record.task_title} · {record.protocol_title}"),
    ]


# -- choices on val -----------------------------------------------------------------------------------


def choices(store: RunStore, record: RunRecord, arrays: Mapping[str, np.ndarray]) -> list[CurvePanel]:
    """Return what was tried on val: one panel for each measure, with the chosen value marked."""
    del store
    metric = f"val_{record.metric}"
    panels = _layers(record, metric)
    tried = next((name for name in TRIED if len(arrays.get(f"fit_{name}", ())) > 1), "")
    if tried and f"fit_{metric}" in arrays:
        group = next((name for name in GROUPED if f"fit_{name}" in arrays), "")
        panels.append(_tried(record, arrays, metric, tried, group))
        if f"fit_{LOSS}" in arrays:
            panels.append(_tried(record, arrays, LOSS, tried, group))
    if not panels:
        raise NotThere("nothing was chosen among several values on val, or what was tried was not recorded")
    return panels


LOSS = "val_log_loss"


def _tried(
    record: RunRecord, arrays: Mapping[str, np.ndarray], measure: str, tried: str, group: str
) -> CurvePanel:
    values = np.asarray(arrays[f"fit_{measure}"], dtype=np.float64)
    x = np.asarray(arrays[f"fit_{tried}"], dtype=np.float64)[: len(values)]  # a sweep may end early
    groups = arrays[f"fit_{group}"][: len(values)] if group else np.zeros(len(values))
    percent = 1.0 if measure == LOSS else 100.0
    curves = []
    several = list(dict.fromkeys(groups.tolist()))
    for each in several:
        rows = np.flatnonzero((groups == each) & np.isfinite(values))  # without what diverged
        rows = rows[np.argsort(x[rows], kind="stable")]
        is_chosen = (x[rows] == record.chosen.get(tried)) & (str(each) == str(record.chosen.get(group, each)))
        if len(rows):
            curves.append(
                Curve(
                    label=one_line(f"{group} {each}") if len(several) > 1 else "",
                    x=_line(x[rows]),
                    y=_line(percent * values[rows]),
                    chosen=int(is_chosen.argmax()) if is_chosen.any() else -1,
                )
            )
    if not curves:
        raise NotThere("every value that was tried diverged")
    name = "log-loss on val" if measure == LOSS else f"{measure.removeprefix('val_')} on val (%)"
    return CurvePanel(
        title=_title_with_choice(record), curves=curves, x_title=TRIED[tried], y_title=name, logarithmic=True
    )


def _title_with_choice(record: RunRecord) -> list[str]:
    names = [name for name in ("layer", "stages", *TRIED, "epochs") if name in record.chosen]
    values = [(name, record.chosen[name]) for name in names]
    texts = [f"{name} {each:.3g}" if isinstance(each, float) else f"{name} {each}" for name, each in values]
    return [*_title(record), one_line(f"chosen: {', '.join(texts)}")]


def _layers(record: RunRecord, metric: str) -> list[CurvePanel]:
    """Return the layers that `linear` ranked by ridge regression, in their order."""
    start = f"ridge_{metric} "
    scores = {key.removeprefix(start): value for key, value in record.chosen.items() if key.startswith(start)}
    if len(scores) < 2:
        return []
    names = list(scores)
    layer = record.chosen.get("layer")
    curve = Curve(
        label="",
        x=_line(range(len(names))),
        y=_line(100 * value for value in scores.values()),
        chosen=names.index(layer) if layer in names else -1,
    )
    return [
        CurvePanel(
            title=_title_with_choice(record),
            curves=[curve],
            x_title="layer",
            y_title=f"{record.metric} of ridge regression on val (%)",
            ticks=[one_line(name) for name in names],
        )
    ]


def _line(values: Any) -> Line:
    return tuple(float(value) for value in values)


# -- training -----------------------------------------------------------------------------------------


def training(store: RunStore, record: RunRecord, arrays: Mapping[str, np.ndarray]) -> list[CurvePanel]:
    """Return the loss of each training of a run, from its logs, else from the means of epochs."""
    logs = read_logs(store.logs_of(record.run_id))
    losses = np.asarray(arrays.get("fit_train_loss", ()), dtype=np.float64)
    curves = {
        "training loss": [_thinned(name, log, "loss") for name, log in logs.items()],
        "learning rate": [_thinned(name, log, "lr") for name, log in logs.items()],
    }
    if not logs and len(losses):
        epochs = _line(range(1, len(losses) + 1))
        curves = {"training loss, mean of each epoch": [Curve(label="", x=epochs, y=_line(losses))]}
    elif not logs:
        raise NotThere("nothing was trained by gradient descent, or no log was kept")
    return [
        CurvePanel(title=_title(record), curves=each, x_title="epoch", y_title=title, markers=not logs)
        for title, each in curves.items()
    ]


def read_logs(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Return the logs of the trainings of a run: name -> column -> values, without unfinished rows."""
    logs = {}
    for path in sorted(folder.glob("*.csv")) if folder.is_dir() else ():
        columns: dict[str, list[float]] = {name: [] for name in ("step", "epoch", "loss", "lr")}
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                try:
                    values = [float(row[name]) for name in columns]
                except (KeyError, TypeError, ValueError):
                    continue  # a row that is still being written
                if all(map(math.isfinite, values)):
                    for name, value in zip(columns, values, strict=True):
                        columns[name].append(value)
        if columns["step"]:
            logs[path.stem] = columns
    return logs


def _thinned(name: str, log: Mapping[str, Sequence[float]], column: str) -> Curve:
    every = math.ceil(len(log[column]) / POINTS)
    return Curve(label=one_line(name), x=tuple(log["epoch"][::every]), y=tuple(log[column][::every]))


# -- classes ------------------------------------------------------------------------------------------


def per_class(store: RunStore, record: RunRecord, arrays: Mapping[str, np.ndarray]) -> Dots:
    """Return the score of each class, the best first; of many, the best and the worst."""
    kind = record.identity["task"]["kind"]
    metric = metric_of_classes(kind, record.metric)
    scores = scores_of_classes(kind, metric, arrays)
    if not scores:
        raise NotThere("no class occurs in its test images")
    names = class_names(store, record, max(score.place for score in scores) + 1)
    scores.sort(key=lambda score: (-score.value, score.place))
    half = LISTED // 2
    left_out = len(scores) - LISTED
    shown = [*scores[:half], *scores[-half:]] if left_out > 0 else scores
    return Dots(
        title=_title(record),
        dots=[
            Dot(
                label=f"{cut(names[score.place], 44)} ({score.n:,})",
                value=100 * score.value,
                low=100 * score.low,
                high=100 * score.high,
            )
            for score in shown
        ],
        x_title=f"{'accuracy' if metric == 'top1' else metric} (%); in brackets, test images",
        gap=half if left_out > 0 else 0,
        gap_label=f"… {left_out:,} more …" if left_out > 0 else "",
    )


def confusion(store: RunStore, record: RunRecord, arrays: Mapping[str, np.ndarray]) -> Dots | Matrix:
    """Return the confusion matrix; of many classes, a list of the most frequent confusions."""
    try:
        counts = confusions(arrays, record.identity["task"].get("num_classes", 0))
    except BenchError as error:
        raise NotThere(f"confusions are those of images with one label each, and {error}") from error
    names = class_names(store, record, len(counts))
    of_rows = counts.sum(1)
    if len(counts) <= MATRIX:
        shares = [_line(row / n) if n else None for row, n in zip(counts, of_rows, strict=True)]
        return Matrix(title=_title(record), names=names, shares=shares)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0.0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [divmod(int(place), len(counts)) for place in order if wrong.flat[place] > 0]
    if not pairs:
        raise NotThere("every test image was right")
    return Dots(
        title=[*_title(record), "the most frequent confusions, true → predicted"],
        dots=[
            Dot(
                label=f"{cut(names[true], 22)} → {cut(names[taken], 22)} (of {of_rows[true]:g})",
                value=float(wrong[true, taken]),
                low=float(wrong[true, taken]),
                high=float(wrong[true, taken]),
            )
            for true, taken in pairs
        ],
        x_title="test images" + (" (mean over draws)" if np.any(wrong % 1) else ""),
        bars=True,
    )


def class_names(store: RunStore, record: RunRecord, count: int) -> list[str]:
    """Return the names of the classes as far as they were recorded, else their numbers.

    Names are in the record of tasks with some of the classes, and beside a linear probe, also one of another
    run on the same images.
    """
    names = list(record.provenance.get("classes", ()))
    same = [each for each in store.records() if each.identity["data"] == record.identity["data"]]
    for each in [record, *same]:
        if len(names) >= count:
            break
        names = store.head(each.run_id).get("head_classes", np.empty(0)).tolist()
    if len(names) < count:
        return [f"class {place}" for place in range(count)]
    return [one_line(str(name)) for name in names]


NAMES = {
    "choice": "choices on val",
    "training": "training curves",
    "per-class": "scores of classes",
    "confusion": "confusions",
}
Make = Callable[[RunStore, RunRecord, Mapping[str, np.ndarray]], Figures]
FIGURES: dict[str, Make] = {
    "choice": choices,
    "training": training,
    "per-class": per_class,
    "confusion": confusion,
}
