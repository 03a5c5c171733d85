"""Runs one by one, as text."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from mixmim_bench.report.text import one_line, printable
from mixmim_bench.specs import RunRecord, Score
from mixmim_bench.suite.records import RunStore

SHORT = 8  # digits of a run id


def matching(
    records: Iterable[RunRecord],
    models: Sequence[str] = (),
    tasks: Sequence[str] = (),
    protocols: Sequence[str] = (),
) -> list[RunRecord]:
    """Return the records of some models, tasks and protocols (names or globs), the newest last."""
    wanted = [
        record
        for record in records
        if is_one(record.model, models) and is_one(record.task, tasks) and is_one(record.protocol, protocols)
    ]
    return sorted(wanted, key=lambda record: record.provenance.get("started", ""))


def is_one(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a name is one of some names or globs; of none, every name is."""
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def row_of(record: RunRecord) -> dict[str, Any]:
    """Return a run as a row of a table, for the terminal."""
    row = {
        "run": record.run_id[:SHORT],
        "model": record.model,
        "weights": record.weights,
        "task": record.task,
        "protocol": record.protocol,
        "seed": "" if record.identity["seed"] is None else record.identity["seed"],
        "score": f"FAILED: {record.error}" if record.error else _score(record.metric, record),
        "started": record.provenance.get("started", "")[:16].replace("T", " "),
    }
    return {name: one_line(value) if isinstance(value, str) else value for name, value in row.items()}


def _score(metric: str, record: RunRecord) -> str:
    return f"{metric} {in_percent(record.scores[metric])}"


def in_percent(score: Score) -> str:
    """Return a score with its interval, in percent."""
    return f"{100 * score['value']:.1f} ({100 * score['low']:.1f} to {100 * score['high']:.1f})"


def describe(store: RunStore, record: RunRecord) -> str:
    """Describe a run: what was done, its scores, what was chosen, where it ran, and its files."""
    identity = record.identity
    lines = [
        f"{record.model} ({record.weights}) · {record.task_title} · {record.protocol_title}",
        f"run         {record.run_id}",
    ]
    if record.error:
        lines.append(f"FAILED      {record.error}")
    for name, score in record.scores.items():
        lines.append(f"{name:<11} {in_percent(score)} %{_of_what(score)}")
    if record.train:
        lines.append(f"{'on train':<11} {_on_train(record.train)}")
    for title, values in (
        ("chosen", record.chosen),
        ("counts", record.counts),
        ("seconds", record.timings),
        ("protocol", identity["protocol"]),
        ("images", {"data": identity["data"], **identity["task"]}),
        ("model", {key: identity[key] for key in ("arch", "kwargs", "weights", "precision", "seed")}),
        ("pixels", identity["preprocessing"]),
        ("where", record.provenance),
    ):
        lines += _table(title, values)
    lines += [f"note        {note}" for note in record.notes]
    lines += [f"file        {path}" for path in store.files_of(record.run_id)]
    return "\n".join(map(printable, lines))


def _of_what(score: Score) -> str:
    details = [f"{score['interval']} interval"] if score.get("interval") else []
    details += [f"n {score['n']}"] if "n" in score else []
    details += [f"a guess scores {100 * score['guess']:.1f}"] if "guess" in score else []
    return f"; {', '.join(details)}" if details else ""


def _on_train(train: Mapping[str, float]) -> str:
    """Describe the scores of training images, the loss and the number of images last."""
    scores = [f"{name} {100 * value:.1f} %" for name, value in train.items() if name not in ("loss", "n")]
    loss = [f"loss {train['loss']:.4g}"] if "loss" in train else []
    return ", ".join([*scores, *loss]) + (f"; n {train['n']}" if "n" in train else "")


def _table(title: str, values: Mapping[str, Any]) -> list[str]:
    return [
        f"{title if place == 0 else '':<11} {key} = {value}"
        for place, (key, value) in enumerate(values.items())
    ]
