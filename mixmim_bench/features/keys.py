"""Feature store keys, a pure function of run, split and layer."""

import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import timm

from mixmim_bench.data.dataset import Split
from mixmim_bench.features import EXTRACTOR_VERSION, OWN
from mixmim_bench.features.store import Entry, FeatureStore
from mixmim_bench.specs import TORCH, Run


def entry_of(run: Run, split: Split, layer: str = OWN) -> Entry:
    """Return the feature store entry for a layer of a split; it may not exist yet."""
    about = {
        "model": run.model.name,
        "weights": run.weights.name,
        "task": run.task.name,
        "task_file": str(Path(run.task.path).resolve()),
        "root": run.data.root,
        "role": split.role,
        **({"subset": list(run.task.subset)} if run.task.partial else {}),
    }
    made_by = {
        **made_by_backbone(run),
        "layer": layer,
        "images": split.stamp,
        "skip_unreadable": run.task.skip_unreadable,  # else images skipped once would stay missing
    }
    return FeatureStore().entry(made_by, about)


def made_by_backbone(run: Run) -> dict[str, Any]:
    """Return everything features depend on besides the image and the layer."""
    identity = run.identity()
    engine = {} if run.engine == TORCH else {"engine": run.engine}  # as before there were engines
    return {
        **key_of_network(run),
        **{key: identity[key] for key in ("preprocessing", "precision")},
        **engine,
        "extractor": EXTRACTOR_VERSION,
    }


def key_of_network(run: Run) -> dict[str, Any]:
    """Return everything that a network and its weights depend on, except the image size."""
    identity = run.identity()
    return {
        **{key: identity[key] for key in ("arch", "arch_version", "kwargs", "weights") if key in identity},
        "seed": (run.seed or 0) if run.weights.random else None,
        "code": custom_code(run.model.arch),
        **({"classes": run.classes} if run.classes else {}),
    }


def custom_code(arch: str) -> str:
    """Hash the module of an architecture from outside timm and this package, since it may change."""
    module = timm.models.model_entrypoint(arch).__module__
    if module.startswith(("timm.", "mixmim_bench.")):
        return ""
    path = getattr(sys.modules.get(module), "__file__", None)
    return sha256(Path(path).read_bytes()).hexdigest()[:16] if path else ""
