"""Trained linear probes as files, and models that classify with them."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mixmim_bench.atomic import write_whole
from mixmim_bench.errors import BenchError
from mixmim_bench.features import OWN
from mixmim_bench.inference import ClassName, ReadyModel
from mixmim_bench.modelfile import open_model
from mixmim_bench.models.build import build
from mixmim_bench.protocols.tuning import set_head
from mixmim_bench.scoring.metrics import CLASSIFICATION
from mixmim_bench.specs import AUTO, RANDOM, ModelSpec, RunRecord
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.schema import record_of
from mixmim_bench.weights.download import Bar
from mixmim_bench.weights.find import resolve_weights

FORMAT = "mixmim-bench head 1"


def export_head(store: RunStore, record: RunRecord, path: Path) -> tuple[int, int]:
    """Write the linear probe of a run as safetensors: `weight` (K, d), `bias` (K,) on features of its layer.

    The metadata holds the record and the names of the classes. Returns (K, d). Raises BenchError.
    """
    arrays = store.head(record.run_id)
    if not arrays:
        raise BenchError(
            f"no head of {record.run_id} ({record.model} · {record.task} · {record.protocol}) was kept: "
            "linear probes keep theirs, results of older versions did not; remove such a result and run again"
        )
    weight, bias = arrays["head_weight"], arrays["head_bias"]
    metadata = {
        "format": FORMAT,
        "record": record.to_json(),
        "classes": json.dumps([str(name) for name in arrays["head_classes"]]),
    }
    tensors = {"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)}
    write_whole(path, save(tensors, metadata))
    return weight.shape[0], weight.shape[1]


def model_with_head(
    path: Path, model: str = "", weights: str = AUTO, device: str = "cpu", bar: Bar | None = None
) -> ReadyModel:
    """Build the model that a head was fitted on, with the head as its classifier, in eval mode.

    Args:
        path: a file of `export_head`.
        model: by default the one that the record names.
        weights: as for `--weights`; they must be those that the head was fitted on.
        device: a torch device.
        bar: creates the progress bar of a download; if None, nothing is downloaded.

    Raises:
        BenchError: the file is not a head, is of another layer than the model's own pooled features, or the
            model or weights are others.
    """
    record, classes, weight, bias = _read(path)
    identity = record.identity
    layer = record.chosen.get("layer", OWN)
    if layer != OWN:
        raise BenchError(f"{path} is on features of {layer}; predict --head takes heads on {OWN!r} features")
    if identity["task"].get("kind") != CLASSIFICATION:
        raise BenchError(f"{path} is of a {identity['task'].get('kind')} task; predict shows one class")
    spec = _model(model or record.model, identity)
    if spec.version != record.arch_version:
        raise BenchError(
            f"{path} was fitted on version {record.arch_version} of {spec.arch}, and this is {spec.version}"
        )
    found = RANDOM if record.random_init else resolve_weights(spec, weights, bar)
    if found.sha256 != identity["weights"]["sha256"]:
        raise BenchError(
            f"{path} was fitted on {record.weights} (SHA-256 {identity['weights']['sha256'][:8]}…), not "
            f"on {found.name}; pass these weights with --weights"
        )
    height, width = identity["preprocessing"]["size"]
    network: Any = build(spec, found, (height, width), identity["seed"] or 0)
    network.reset_classifier(len(weight))
    try:
        set_head(network, weight, bias)
    except BenchError as error:
        raise BenchError(
            f"{spec.name} has no linear classifier on its pooled features, as {path} is"
        ) from error
    ready = ReadyModel(network, spec, found, (height, width))
    ready.num_classes = len(weight)
    ready.classes = [ClassName(name) for name in classes]
    return ready.to(device).eval()


def _model(name: str, identity: Mapping[str, Any]) -> ModelSpec:
    """Return the model of a record with the preprocessing that it had."""
    try:
        spec = open_model(name)
    except BenchError:
        spec = ModelSpec(name=name, arch=identity["arch"])
    if spec.arch != identity["arch"] or dict(spec.kwargs) != identity["kwargs"]:
        raise BenchError(
            f"the head was fitted on {identity['arch']} {identity['kwargs'] or ''}, not on {spec.arch} "
            f"{dict(spec.kwargs) or ''}; name that model with -m"
        )
    return dataclasses.replace(spec, preprocessing=identity["preprocessing"])


def _read(path: Path) -> tuple[RunRecord, list[str], np.ndarray, np.ndarray]:
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise BenchError(f"{path} is not a head of this suite (`mixmim-bench results export-head`)")
            record, classes = record_of(json.loads(metadata["record"])), json.loads(metadata["classes"])
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise BenchError(f"{path} cannot be read as a head: {error}") from error
    if weight.ndim != 2 or bias.shape != (len(weight),) or len(classes) != len(weight):
        raise BenchError(
            f"{path}: weight {weight.shape}, bias {bias.shape} and {len(classes)} classes differ"
        )
    return record, classes, weight, bias
