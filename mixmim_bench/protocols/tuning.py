"""What fine-tuning does with a network of any kind of task: build, initialise, train the head, score."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mixmim_bench import facts, processes
from mixmim_bench.data.images import Part
from mixmim_bench.errors import BenchError
from mixmim_bench.features import LOGITS
from mixmim_bench.features.engines import Reader
from mixmim_bench.features.engines.torch import TorchReader
from mixmim_bench.features.extract import Features, extract_together
from mixmim_bench.protocols.workbench import Workbench
from mixmim_bench.seeding import generator
from mixmim_bench.training.contract import Schedule, Trained

if TYPE_CHECKING:
    from mixmim_bench.protocols.classification.finetune import Finetune

ABSENT = -20.0  # logit of a class that has no image, below the smallest intercept


def build_network(bench: Workbench, recipe: "Finetune") -> tuple[Any, tuple[str, ...]]:
    """Build the backbone with a new head, and notes on what the architecture does not support."""
    notes = list(facts.check_weights(bench.run.model, bench.run.weights, bench.run.size))
    try:
        network: Any = bench.backbone(num_classes=bench.num_classes, drop_path_rate=recipe.drop_path)
    except BenchError as error:
        if "drop_path_rate" not in str(error):
            raise processes.InAll(str(error)) from error
        network = bench.backbone(num_classes=bench.num_classes)
        if recipe.drop_path > 0.0:
            notes.append(f"drop_path {recipe.drop_path} ignored: {bench.run.model.name} does not support it")
    if hasattr(network, "layer_ids"):
        network.layer_ids = "openmmlab" if recipe.layer_ids == "openmmlab" else "release"
    if recipe.head_init == "linear" and bench.run.weights.random:
        # the probe saw a network without a head, whose random weights are others
        network.load_state_dict(bench.backbone().state_dict(), strict=False)
    initialise(classifier(network), recipe.head_init_std, bench.seed)
    return network, tuple(notes)


def classifier(network: Any) -> nn.Module:
    """Return the classification head of a timm model."""
    return network.get_classifier()


def initialise(head: nn.Module, std: float, seed: int) -> None:
    """Initialise a linear head: truncated normal weights, no bias."""
    if isinstance(head, nn.Linear):
        nn.init.trunc_normal_(head.weight, std=std, generator=generator(seed))
        if head.bias is not None:
            nn.init.zeros_(head.bias)


@torch.no_grad()
def set_head(network: Any, weight: np.ndarray, bias: np.ndarray) -> None:
    """Set the head to a linear probe's coefficients (K, d) and intercepts (K,); raises BenchError."""
    head = classifier(network)
    if not isinstance(head, nn.Linear) or head.weight.shape != weight.shape or head.bias is None:
        raise processes.InAll(
            "head_init = 'linear' needs a head that is one linear layer on the pooled features; this "
            f"network's is a {type(head).__name__}: use head_init = 'random'"
        )
    head.weight.copy_(torch.from_numpy(np.asarray(weight, dtype=np.float32)))
    head.bias.copy_(torch.from_numpy(np.asarray(bias, dtype=np.float32)))


def head_of_classes(
    coef: np.ndarray, intercept: np.ndarray, classes: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights (K, d) and bias (K,) of all classes, from those of a probe that saw `classes`."""
    if len(coef) == 1 and len(classes) == 2:  # one row of log-odds
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    weight = np.zeros((num_classes, coef.shape[1]))
    bias = np.full(num_classes, intercept.min() + ABSENT)
    weight[classes], bias[classes] = coef, intercept
    return weight, bias


def train_head(network: Any, epochs: int, schedule: Schedule, train: Callable[[Schedule], Trained]) -> None:
    """Train the head alone for some epochs, at a constant rate, before all is trained."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    head = set(classifier(network).parameters())
    for parameter in learning:
        parameter.requires_grad_(parameter in head)
    try:
        train(
            dataclasses.replace(
                schedule,
                epochs=epochs,
                min_lr=schedule.lr,
                warmup_epochs=0.0,
                layer_decay=1.0,
                head_lr_scale=1.0,
                ema_decay=0.0,
            )
        )
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def logits_of(network: nn.Module, part: Part, bench: Workbench, name: str) -> Features:
    """Compute the logits of images with a trained network."""
    return read_images(TorchReader(network, bench.machine), LOGITS, part, bench, name)


def read_images(reader: Reader, layer: str, part: Part, bench: Workbench, name: str) -> Features:
    """Read a layer of images as they are evaluated, into memory; all processes of a job take part."""
    with bench.stages.stage(name, len(part), bench.gmacs) as advance:
        return extract_together(
            reader,
            part,
            bench.transform(),
            bench.machine,
            bench.run.task.skip_unreadable,
            advance,
            layer,
        )
