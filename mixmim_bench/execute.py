"""Doing one run: the only step that computes."""

import dataclasses
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from mixmim_bench import metrics
from mixmim_bench.bench import Split, Workbench
from mixmim_bench.data.dataset import TaskData
from mixmim_bench.machine import memory_errors, provenance
from mixmim_bench.protocols import Predictions, build_protocol
from mixmim_bench.specs import Run, RunRecord

KEPT_CLASSES = 5  # of each image's scores, the best are kept beside the record


def execute(run: Run, data: TaskData, bench: Workbench) -> tuple[RunRecord, dict[str, np.ndarray]]:
    """Judge a backbone on a task: the record, and the arrays that are kept beside it.

    The protocol is handed train and val. Test is scored once, after it has returned.
    """
    started = datetime.now(UTC)
    clock = time.perf_counter()
    train, val, test = (Split(role, data.parts[role]) for role in ("train", "val", "test"))
    protocol = build_protocol(run.protocol, run.task.kind)
    with memory_errors(bench.machine):
        fitted = protocol.fit(bench, train, val)
        fitted_at = time.perf_counter()
        predicted = fitted.predict(test)
    finished = time.perf_counter()
    record = dataclasses.replace(
        blank_record(run),
        scores={metric: metrics.score(metric, predicted.y, predicted.scores) for metric in run.task.metrics},
        chosen=dict(fitted.chosen),
        counts={
            **{f"n_{role}": len(part) for role, part in data.parts.items()},
            "skipped": sum(bench.skipped.values()),
        },
        timings={
            "fit_s": round(fitted_at - clock, 3),
            "test_s": round(finished - fitted_at, 3),
            "total_s": round(finished - clock, 3),
        },
        notes=tuple([*bench.notes, *fitted.notes]),
        provenance={
            **provenance(),
            **bench.machine.describe(),
            "started": started.isoformat(timespec="seconds"),
        },
    )
    return record, {**_kept(predicted), **{f"fit_{k}": v for k, v in fitted.arrays.items()}}


def blank_record(run: Run) -> RunRecord:
    """Describe a run without saying what came of it."""
    return RunRecord(
        run_id=run.run_id,
        model={
            "name": run.model.name,
            "arch": run.model.arch,
            "kwargs": dict(run.model.kwargs),
            "weights": run.weights["name"],
            "weights_kind": run.weights["kind"],
            "weights_sha256": run.weights["sha256"],
        },
        task={
            "name": run.task.name,
            "title": run.task.title,
            "version": run.task.version,
            "kind": run.task.kind,
            "metric": run.task.metrics[0],
            "suites": list(run.task.suites),
            "data_fingerprint": run.data["fingerprint"],
            "split": dict(run.task.split),
        },
        protocol=dict(run.protocol),
        seed=run.seed,
        precision=run.precision,
        image_size=_pair(run.preprocessing),
    )


def failed_record(run: Run, error: BaseException) -> RunRecord:
    """Put a failure on record; it is not a finished run, and the next start tries again."""
    text = f"{type(error).__name__}: {error}"
    return dataclasses.replace(blank_record(run), error=text[:1000], provenance=provenance())


def _pair(preprocessing: Mapping[str, Any]) -> tuple[int, int]:
    height, width = preprocessing["size"]
    return height, width


def _kept(predicted: Predictions) -> dict[str, np.ndarray]:
    """Keep, for each test image, its id, its label and its best classes with their scores."""
    k = min(KEPT_CLASSES, predicted.scores.shape[1])
    best = np.argsort(-predicted.scores, axis=1, kind="stable")[:, :k]
    return {
        "ids": predicted.ids,
        "y": predicted.y.astype(np.int32),
        "best": best.astype(np.int32),
        "best_scores": np.take_along_axis(predicted.scores, best, 1).astype(np.float32),
    }
