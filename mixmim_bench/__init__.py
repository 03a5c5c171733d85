"""Linear-probe and transfer benchmarks for vision backbones, built around MixMIM."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixmim_bench.api import make_task, run_suite, wrap_model
    from mixmim_bench.inference import demo_image, get_model, inference_model, list_models
    from mixmim_bench.models.pretraining import pretraining_model
    from mixmim_bench.report.analysis import (
        compare_models,
        leaderboard,
        load_results,
        plot_comparison,
        plot_confusion,
        plot_fewshot,
        plot_pareto,
        plot_per_class,
    )

__version__ = "0.1.0"

# Public names and their modules, imported lazily because importing torch takes seconds.
_PUBLIC = {
    "compare_models": "mixmim_bench.report.analysis",
    "demo_image": "mixmim_bench.inference",
    "get_model": "mixmim_bench.inference",
    "inference_model": "mixmim_bench.inference",
    "leaderboard": "mixmim_bench.report.analysis",
    "list_models": "mixmim_bench.inference",
    "load_results": "mixmim_bench.report.analysis",
    "make_task": "mixmim_bench.api",
    "plot_comparison": "mixmim_bench.report.analysis",
    "plot_confusion": "mixmim_bench.report.analysis",
    "plot_fewshot": "mixmim_bench.report.analysis",
    "plot_pareto": "mixmim_bench.report.analysis",
    "plot_per_class": "mixmim_bench.report.analysis",
    "pretraining_model": "mixmim_bench.models.pretraining",
    "run_suite": "mixmim_bench.api",
    "wrap_model": "mixmim_bench.api",
}

__all__ = [
    "compare_models",
    "demo_image",
    "get_model",
    "inference_model",
    "leaderboard",
    "list_models",
    "load_results",
    "make_task",
    "plot_comparison",
    "plot_confusion",
    "plot_fewshot",
    "plot_pareto",
    "plot_per_class",
    "pretraining_model",
    "run_suite",
    "wrap_model",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
