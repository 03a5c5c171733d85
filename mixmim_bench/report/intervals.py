"""Intervals of records that an older method made, made again from the predictions that are kept."""

import dataclasses

from mixmim_bench.errors import BenchError
from mixmim_bench.metrics import METRICS, interval_method, kept_draws, score_items
from mixmim_bench.specs import RunRecord
from mixmim_bench.store import RunStore


def with_current_intervals(store: RunStore, record: RunRecord) -> RunRecord:
    """Give a record the intervals of today's methods, and write it if that changed it.

    Values stay what they are. Where a metric has changed since, or the predictions are gone, so do intervals.
    """
    versions = record.identity["task"].get("metric_versions", {})
    scores = dict(record.scores)
    for name, score in record.scores.items():
        if name not in METRICS or "interval" not in score or versions.get(name, 1) != METRICS[name].version:
            continue
        if score["interval"] == interval_method(name, score.get("draws", 1)):
            continue
        try:
            found = score_items(name, kept_draws(name, store.arrays(record.run_id)))
        except BenchError:
            continue
        scores[name] = {**score, **found, "value": score["value"]}
    if scores == record.scores:
        return record
    record = dataclasses.replace(record, scores=scores)
    store.rewrite(record)
    return record
