"""Registered models and tasks as rows."""

from typing import Any

from mixmim_bench.data.dataset import has_data
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.registry import MODELS, has_weights, place_of
from mixmim_bench.specs import ModelSpec
from mixmim_bench.suite.selection import load_tasks


def describe_models() -> list[dict[str, Any]]:
    """Describe the registered models."""
    return [_model_row(model) for model in MODELS]


def _model_row(model: ModelSpec) -> dict[str, Any]:
    return {
        "name": model.name,
        "arch": model.arch,
        "aliases": list(model.aliases),
        "params": model.params,
        "gmacs": model.macs / 1e9,
        "input_size": f"{model.image_size[0]}x{model.image_size[1]}",
        "reference": model.reference,
        "weights": [
            {
                "name": weights.name,
                "pretraining": weights.pretraining,
                "url": weights.url,
                "home": weights.home,
                "sha256": weights.sha256,
                "packaged": weights.packaged,
                "published": dict(weights.published),
                "path": str(place_of(weights)),
                "present": has_weights(weights),
            }
            for weights in model.weights
        ],
    }


def describe_tasks(roots: DataRoots) -> list[dict[str, Any]]:
    """Describe the tasks, and whether their images are on this machine."""
    return [
        {
            "name": task.name,
            "suite": ", ".join(task.suites),
            "kind": task.kind,
            "classes": task.num_classes,
            "images": sum(task.counts.values()) or None,
            "metric": task.metrics[0],
            "present": has_data(task, roots),
        }
        for task in load_tasks().values()
    ]
