"""Records and costs with the fields that reports read."""

import dataclasses

from mixmim_bench.registry import MODELS, by_name
from mixmim_bench.specs import Cost, RunRecord, digest


def made(
    model="a",
    value=0.9,
    task="digits",
    protocol="linear",
    seed=None,
    precision="float32",
    version=1,
    metric="top1",
    **changes,
):
    """A finished record with the fields that a report reads."""
    known = by_name(MODELS)
    kind = "random" if changes.get("random_init") else "file"
    identity = {
        "arch": known[model].arch if model in known else model,
        "kwargs": {},
        "weights": {"kind": kind, "sha256": changes.pop("sha256", "0")},
        "preprocessing": {"size": [32, 32]},
        "task": {
            **{"name": task, "kind": "classification", "version": version},
            "metrics": [metric, *changes.pop("more", ())],
        },
        "data": changes.pop("data", "0"),
        "protocol": {"name": protocol, "version": 1, **changes.pop("values", {})},
        "seed": seed,
        "precision": precision,
    }
    low, high = max(value - 0.02, 0.0), min(value + 0.02, 1.0)
    record = RunRecord(
        run_id=digest(identity),
        identity=identity,
        model=model,
        weights="w",
        random_init=False,
        task_title=task,
        protocol_title=protocol,
        costs={"own": f"{model}-own", "run": f"{model}-run"},
        scores={metric: {"value": value, "low": low, "high": high, "n": 500}},
        provenance={"started": "2026-01-01T00:00:00"},
    )
    return dataclasses.replace(record, **changes)


def cost(model="a", gmacs=1.0, **changes):
    values = {
        **{"model": model, "arch": model, "image_size": (32, 32), "precision": "float32", "device": "cpu"},
        **{
            "threads": 2,
            "params_m": 5.0,
            "gmacs": gmacs,
            "uncounted": (),
            "activations_m": 5.0,
            "peak_share": 0.6,
            "images_per_s": 10.0,
        },
        **{"batch_size": 8, "peak_memory_mb": 100.0},
    }
    return Cost(**{**values, **changes})
