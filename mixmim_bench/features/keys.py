"""Where the features of a run are stored: a pure function of run, split and layer."""

import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import timm

from mixmim_bench.data.dataset import Split
from mixmim_bench.features import EXTRACTOR_VERSION, OWN
from mixmim_bench.features.store import Entry, FeatureStore
from mixmim_bench.specs import Run


def entry_of(run: Run, split: Split, layer: str = OWN) -> Entry:
    """Name the entry of the feature store for a layer of a split; it need not exist yet."""
    about = {
        "model": run.model.name,
        "weights": run.weights.name,
        "task": run.task.name,
        "task_file": str(Path(run.task.path).resolve()),
        "root": run.data.root,
        "role": split.role,
    }
    made_by = {
        **made_by_backbone(run),
        "layer": layer,
        "images": split.stamp,
        "skip_unreadable": run.task.skip_unreadable,  # else what was left out once would be for ever
    }
    return FeatureStore().entry(made_by, about)


def made_by_backbone(run: Run) -> dict[str, Any]:
    """Return what the features of an image depend on, apart from the image and the layer."""
    identity = run.identity()
    keys = ("arch", "arch_version", "kwargs", "weights", "preprocessing", "precision")
    return {
        **{key: identity[key] for key in keys if key in identity},
        "seed": (run.seed or 0) if run.weights.random else None,
        "code": _own_code(run.model.arch),
        "extractor": EXTRACTOR_VERSION,
    }


def _own_code(arch: str) -> str:
    """Hash the module of an architecture that is neither timm's nor ours: its author may change it."""
    module = timm.models.model_entrypoint(arch).__module__
    if module.startswith(("timm.", "mixmim_bench.")):
        return ""
    path = getattr(sys.modules.get(module), "__file__", None)
    return sha256(Path(path).read_bytes()).hexdigest()[:16] if path else ""
