"""Recompute intervals of older methods from saved predictions."""

import dataclasses

from mixmim_bench.errors import BenchError
from mixmim_bench.scoring.metrics import METRICS, interval_method, score_items
from mixmim_bench.scoring.predictions import restore
from mixmim_bench.specs import RunRecord
from mixmim_bench.suite.records import RunStore


def with_current_intervals(store: RunStore, record: RunRecord, save: bool = True) -> RunRecord:
    """Update the intervals of a record to the current methods, and save it if they changed and `save`.

    Values stay. Intervals stay too if the metric has a newer version, since its value may differ, or if the
    predictions are missing.
    """
    versions = record.identity["task"].get("metric_versions", {})
    scores = dict(record.scores)
    for name, score in record.scores.items():
        if name not in METRICS or "interval" not in score or versions.get(name, 1) != METRICS[name].version:
            continue
        if score["interval"] == interval_method(name, score.get("draws", 1)):
            continue
        try:
            arrays = store.arrays(record.run_id)
            updated = score_items(name, restore(record.identity["task"]["kind"], name, arrays).draws)
        except BenchError:
            continue
        scores[name] = {**score, **updated, "value": score["value"]}
    if scores == record.scores:
        return record
    current = dataclasses.replace(record, scores=scores)
    if save:
        _save(store, record, current)
    return current


def _save(store: RunStore, before: RunRecord, current: RunRecord) -> None:
    """Save a record, unless a process is doing its run, or has finished it since the record was read."""
    with store.claim(before.run_id) as claimed:
        if claimed and store.result(before.run_id) == before:
            store.rewrite(current)
