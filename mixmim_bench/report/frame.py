"""All results as one long table: one row per run and metric, for analyses of your own."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from mixmim_bench.specs import Cost, RunRecord

# column -> dtype; results/README.md describes them
DTYPES = {
    **dict.fromkeys(
        ("run_id", "model", "arch", "weights", "task", "suites", "protocol", "precision", "engine"), "object"
    ),
    **dict.fromkeys(("image_size", "metric", "interval", "data", "setting", "started"), "object"),
    **dict.fromkeys(("random_init", "ranked"), "bool"),
    **dict.fromkeys(("seed", "n", "draws", "train_n"), "Int64"),
    **dict.fromkeys(("task_version", "metric_version", "protocol_version"), "int64"),
    **dict.fromkeys(("value", "low", "high", "std", "guess", "train", "train_loss"), "float64"),
    **dict.fromkeys(("params_m", "gmacs", "images_per_s"), "float64"),
}
COLUMNS = (
    *("run_id", "model", "arch", "weights", "random_init", "task", "suites", "protocol", "seed", "precision"),
    *("engine", "image_size", "metric", "ranked", "value", "low", "high", "interval", "n", "draws", "std"),
    *("guess", "train", "train_loss", "train_n", "params_m", "gmacs", "images_per_s"),
    *("task_version", "metric_version", "protocol_version", "data", "setting", "started"),
)


def to_long(records: Iterable[RunRecord], costs: Mapping[str, Cost]) -> pd.DataFrame:
    """Build the long table of finished runs, sorted by task, protocol, model, seed and metric.

    Args:
        records: of any version; failed runs are skipped.
        costs: measurements by key; `params_m` and `gmacs` are those at the size of the run.
    """
    rows = [row for record in records if not record.error for row in _rows(record, costs)]
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype(DTYPES)
    return frame.sort_values(["task", "protocol", "model", "weights", "seed", "run_id", "metric"])


def _rows(record: RunRecord, costs: Mapping[str, Cost]) -> Iterable[dict[str, Any]]:
    identity = record.identity
    cost = costs.get(record.costs.get("run", ""))
    common = {
        "run_id": record.run_id,
        "model": record.model,
        "arch": identity["arch"],
        "weights": record.weights,
        "random_init": record.random_init,
        "task": record.task,
        "suites": " ".join(record.suites),
        "protocol": record.protocol,
        "seed": identity["seed"],
        "precision": identity["precision"],
        "engine": record.engine,
        "image_size": "x".join(map(str, identity["preprocessing"].get("size", ()))),
        "params_m": cost.params_m if cost else None,
        "gmacs": cost.gmacs if cost else None,
        "images_per_s": cost.images_per_s if cost else None,
        "task_version": identity["task"]["version"],
        "protocol_version": identity["protocol"]["version"],
        "data": identity["data"],
        "setting": record.setting,
        "started": record.provenance.get("started", ""),
    }
    for metric, score in record.scores.items():
        known = {
            name: score.get(name)
            for name in ("value", "low", "high", "interval", "n", "draws", "std", "guess")
        }
        trained = record.train if metric in identity["task"]["metrics"] else {}  # not of further settings
        yield {
            **common,
            **known,
            "train": trained.get(metric),
            "train_loss": trained.get("loss"),
            "train_n": trained.get("n"),
            "metric": metric,
            "ranked": metric == record.metric,
            "metric_version": record.metric_version(metric),
        }
