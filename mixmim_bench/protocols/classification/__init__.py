"""Protocols for images with one label each."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixmim_bench.features.extract import Features
    from mixmim_bench.probes.path import LinearPath
    from mixmim_bench.protocols.workbench import Workbench


def score_path(bench: "Workbench", path: "LinearPath", features: "Features") -> list[float]:
    """Score a fitted path on features of val by the task's ranked metric, for each of its penalties."""
    from mixmim_bench.scoring.metrics import value
    from mixmim_bench.scoring.predictions import of_all_classes

    return [
        value(bench.metric, features.y, of_all_classes(decided, path.classes_, bench.num_classes))
        for decided in path.decision_path(features.x)
    ]
