"""Execute one run: the only step that computes."""

import dataclasses
import time
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np

from mixmim_bench import processes
from mixmim_bench.data.dataset import Split, TaskData
from mixmim_bench.data.hashing import count_duplicates, digest_of_bytes
from mixmim_bench.data.images import join
from mixmim_bench.errors import BenchError
from mixmim_bench.facts import count_gmacs
from mixmim_bench.features.engines import engine_with_version
from mixmim_bench.machine import Machine
from mixmim_bench.memory import memory_errors
from mixmim_bench.progress import Stages
from mixmim_bench.protocols import build_protocol, find_protocol
from mixmim_bench.protocols.contract import Fitted
from mixmim_bench.protocols.workbench import Shelf, Workbench
from mixmim_bench.provenance import provenance
from mixmim_bench.scoring.metrics import is_a_guess
from mixmim_bench.scoring.predictions import Predictions
from mixmim_bench.specs import TORCH, Run, RunRecord, Score


def open_run(
    run: Run,
    data: TaskData,
    machine: Machine,
    stages: Stages,
    shelf: Shelf | None = None,
    gmacs: float | None = None,
) -> Workbench:
    """Create the workbench of a run.

    Args:
        run: the run.
        data: the images of its task.
        machine: device and precision.
        stages: shows progress.
        shelf: reuses the backbone of the previous run.
        gmacs: of one image; counted if not given.

    Raises:
        BenchError: the images differ from those of the run, or the model cannot be built at its size.
    """
    if data.source.fingerprint != run.data.fingerprint:
        raise BenchError(
            f"{run.task.name}: the images in {data.source.root} differ from those of the run (fingerprint "
            f"{data.source.fingerprint}, not {run.data.fingerprint})"
        )
    gmacs = count_gmacs(run.network, run.computed_size) if gmacs is None else gmacs
    here = dataclasses.replace(run, data=data.source)
    return Workbench(here, machine, stages, gmacs, shelf or Shelf(), data.classes)


def execute(run: Run, data: TaskData, bench: Workbench) -> tuple[RunRecord, dict[str, np.ndarray]]:
    """Evaluate a backbone on a task; returns the record, and the arrays to save beside it.

    The protocol receives train and val. Test is scored once, after it has returned.
    """
    started = datetime.now(UTC)
    clock = time.perf_counter()
    splits = data.splits
    with memory_errors(bench.machine):
        fitted, predicted, fit_s = fit_and_predict(run, data, bench)
    total_s = time.perf_counter() - clock
    duplicates, data_bytes, trouble = _look_at_bytes(bench, splits)
    scores = predicted.scores_by(run.task.metrics)
    known = [role for role in ("train", "val") if role in splits] or ["test"]
    learnt_from = join([splits[role].part for role in known]).targets
    for name, guess in predicted.guesses(run.task.metrics, learnt_from).items():
        if name in scores:
            scores[name]["guess"] = guess
    record = dataclasses.replace(
        blank_record(run),
        data_bytes=data_bytes,
        scores=scores,
        train=dict(fitted.train),
        chosen=dict(fitted.chosen),
        counts={
            **{f"n_{role}": count for role, count in data.counts.items()},
            **{f"skipped_{role}": count for role, count in bench.skipped.items()},
            **duplicates,
            "head_params": fitted.head_params,
            "head_macs": fitted.head_macs,
        },
        timings={
            "extract_s": round(bench.extract_s, 3),  # 0 if the features were cached
            "fit_s": round(fit_s, 3),
            "test_s": round(total_s - fit_s - bench.extract_s, 3),
            "total_s": round(total_s, 3),
        },
        notes=tuple(
            [*bench.notes, *fitted.notes, *_guessing(run, scores), *_duplicate_notes(duplicates), *trouble]
        ),
        provenance={
            **provenance(),
            **bench.machine.describe(),
            "engine": engine_with_version(
                bench.run.engine if build_protocol(run.protocol, run.task.kind).frozen_layers() else TORCH
            ),
            "processes": processes.count(),
            "layout": data.source.layout,
            "root": data.source.root,
            "started": started.isoformat(timespec="milliseconds"),
            **({"classes": list(data.classes)} if run.task.partial else {}),
        },
    )
    arrays = {**predicted.kept(run.task.metrics), **{f"fit_{k}": v for k, v in fitted.arrays.items()}}
    if "both" in fitted.heads:
        weight, bias = fitted.heads["both"]
        arrays |= {"head_weight": weight.astype(np.float32), "head_bias": bias.astype(np.float32)}
        arrays["head_classes"] = np.array(data.classes)
    return record, arrays


def fit_and_predict(run: Run, data: TaskData, bench: Workbench) -> tuple[Fitted, Predictions, float]:
    """Fit on train and val, then score test once; in a job, all processes of a training do so.

    Returns the seconds of the fit as well, without those of extracting features.
    """
    clock = time.perf_counter()
    fitted = build_protocol(run.protocol, run.task.kind).fit_on(bench, data.splits)
    fit_s = time.perf_counter() - clock - bench.extract_s
    return fitted, fitted.predict(data.splits["test"]), fit_s


def _look_at_bytes(
    bench: Workbench, splits: Mapping[str, Split]
) -> tuple[dict[str, int], str, tuple[str, ...]]:
    """Count duplicate images between the splits and compute the digest of all bytes.

    Images that the run has not read are read now; a failure becomes a note, since the result is valid.
    """
    try:
        digests = {role: bench.digests(split) for role, split in splits.items()}
    except (OSError, BenchError) as error:
        return {}, "", (f"duplicate images were not counted: {error}",)
    duplicates = count_duplicates(digests) if len(digests) > 1 else {}
    return duplicates, digest_of_bytes(digests), ()


def _guessing(run: Run, scores: Mapping[str, Score]) -> list[str]:
    """Note a score that is not significantly better than predicting the class frequencies, or no object."""
    metric = run.task.metrics[0]
    score = scores[metric]
    if not is_a_guess(score):
        return []
    if not score["guess"]:
        return [f"{metric} {100 * score['value']:.1f} % is not significantly above 0"]
    return [
        f"{metric} {100 * score['value']:.1f} % is not significantly better than always predicting the most "
        f"frequent classes ({100 * score['guess']:.1f} %)"
    ]


def _duplicate_notes(duplicates: Mapping[str, int]) -> list[str]:
    count = duplicates.get("test_in_train_or_val", 0)
    return [f"{count} test images also occur in train or val"] if count else []


def check_kept(record: RunRecord, arrays: Mapping[str, np.ndarray]) -> None:
    """Check that a result can be saved; raises TypeError or ValueError."""
    record.to_json()
    for name, values in arrays.items():
        if np.asarray(values).dtype.hasobject:
            raise TypeError(f"the array {name!r} holds objects; only numbers and strings can be saved")


def blank_record(run: Run) -> RunRecord:
    """Return the record of a run without results."""
    return RunRecord(
        run_id=run.run_id,
        identity=run.identity(),
        model=run.model.name,
        weights=run.weights.name,
        random_init=run.weights.random,
        task_title=run.task.title,
        suites=run.task.suites,
        protocol_title=find_protocol(run.protocol["name"], run.task.kind).title,
    )


def failed_record(run: Run, error: BaseException) -> RunRecord:
    """Return the record of a failed run, which does not count as finished."""
    text = f"{type(error).__name__}: {error}".encode("utf-8", "backslashreplace").decode()
    return dataclasses.replace(blank_record(run), error=text[:1000], provenance=provenance())
