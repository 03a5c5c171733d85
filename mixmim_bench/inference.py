"""From a model's name to classes and features of anybody's images.

model = get_model("mixmim-base_3rdparty_in1k", pretrained=True)
inference_model(model, "demo.JPEG")  # {'pred_class': ..., 'pred_score': ..., ...}
model.extract_feat(images)[0]  # (B, 1024)
"""

import dataclasses
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from mixmim_bench.atomic import write_whole
from mixmim_bench.data.images import UnreadableImage
from mixmim_bench.data.loading import Unreadable
from mixmim_bench.data.pictures import Pictures
from mixmim_bench.data.transforms import Transform, eval_transform
from mixmim_bench.errors import BenchError
from mixmim_bench.features import LOGITS, OWN
from mixmim_bench.features.extract import forward_all
from mixmim_bench.machine import Machine, open_machine
from mixmim_bench.models.build import build, classes_of, own_size, preprocessing
from mixmim_bench.progress import download_bar
from mixmim_bench.registry import MODELS, find_model
from mixmim_bench.specs import AUTO, RANDOM, ModelSpec, Weights
from mixmim_bench.weights.find import resolve_weights


class ReadyModel(nn.Module):
    """A network with its weights, its preprocessing and the names of its classes.

    Without a classifier (weights of pretraining have none) the network gives pooled features (B, D).
    """

    def __init__(self, network: Any, spec: ModelSpec, weights: Weights, size: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self.weights = weights
        self.preprocessing = dataclasses.replace(preprocessing(spec), size=size)
        self.num_classes: int = network.num_classes
        self.classes = class_names(network)

    def forward(self, inputs: Tensor) -> Tensor:
        """Give the logits (B, K) of normalised images (B, 3, H, W)."""
        return self.network(inputs)

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor]:
        """Give the pooled features (B, D) of normalised images (B, 3, H, W), in a tuple as OpenMMLab does."""
        return (self.network.forward_head(self.network.forward_features(inputs), pre_logits=True),)

    def transform(self) -> Transform:
        """Make the evaluation transform: an RGB image becomes (3, H, W)."""
        return eval_transform(self.preprocessing)


@dataclass(frozen=True)
class ClassName:
    """A class as people call it; names are not unique (134 and 517 are both 'crane'), synsets are."""

    name: str
    synset: str = ""


def class_names(network: Any) -> list[ClassName]:
    """Name the classes of a network: ImageNet's by timm, others by their number."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(network) if network.num_classes else None
    if subset is None:
        return [ClassName(f"class {label}") for label in range(network.num_classes)]
    info = ImageNetInfo(subset)
    return [
        ClassName(info.index_to_description(label), info.index_to_label_name(label))
        for label in range(network.num_classes)
    ]


def list_models() -> list[str]:
    """List the names that `get_model` knows besides timm's: models, then their published weights."""
    return [spec.name for spec in MODELS] + [alias for spec in MODELS for alias in spec.aliases]


def get_model(
    name: str,
    pretrained: bool | str | Path = False,
    device: str = "cpu",
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    for_features: bool = False,
    seed: int | None = None,
) -> ReadyModel:
    """Build a model by name, in eval mode.

    name: a short name, an alias that names published weights, or any timm model. pretrained: True for the
    published weights (fetched if need be), or the path of a checkpoint. Where a name has several weights,
    the fine-tuned ones are taken, `for_features` the pretrained ones, which the suite probes.
    num_classes: the weights' own unless it is given; another number gets a new classifier, with a
    warning. seed: of what the weights do not fill; default: drawn by torch's generator. Raises BenchError;
    MissingWeights says what to put where.
    """
    spec = find_model(name)
    if pretrained is False:
        weights = RANDOM
    else:
        choice = AUTO if pretrained is True else str(pretrained)
        bar = download_bar(Console(stderr=True))
        weights = resolve_weights(spec, choice, bar, finetuned=not for_features)
    size = own_size(spec) if img_size is None else _pair(img_size)
    if num_classes is None:
        num_classes = classes_of(spec, weights)
    notes: list[str] = []
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    network = build(spec, weights, size, seed, num_classes, notes)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return ReadyModel(network, spec, weights, size).to(device).eval()


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def inference_model(model: ReadyModel | str, image: Any) -> Any:
    """Classify an image, or each of a list of images.

    model: a model, or the name of one with published weights. image: a path, encoded bytes, a PIL image
    or an RGB array (H, W, 3) or (H, W) of uint8. Returns a dict with `pred_scores` (K,), `pred_label`,
    `pred_score`, `pred_class` and `pred_synset`; a list of them for a list. Raises UnreadableImage, and
    BenchError for a model without a classifier.
    """
    ready = get_model(model, pretrained=True) if isinstance(model, str) else model
    several = isinstance(image, list | tuple)
    pictures = Pictures(list(image) if several else [image])
    machine = open_machine(str(next(ready.network.parameters()).device), batch_size=32)
    results = []
    for answers in classify(ready, pictures, machine):
        for row, reason in answers.failures.items():
            raise UnreadableImage(f"{pictures.name(row)}: {reason}")
        results += [_result(ready, scores) for scores in answers.values]
    return results if several else results[0]


def _result(model: ReadyModel, scores: np.ndarray) -> dict[str, Any]:
    label = int(scores.argmax())
    return {
        "pred_scores": scores,
        "pred_label": label,
        "pred_score": float(scores[label]),
        "pred_class": model.classes[label].name,
        "pred_synset": model.classes[label].synset,
    }


@dataclass(frozen=True)
class Answers:
    """The output of a model for some pictures.

    Attributes:
        rows: (b,) the pictures that could be read.
        values: (b, d) probabilities or features.
        failures: the reason for each picture that could not be read.
    """

    rows: np.ndarray
    values: np.ndarray
    failures: Mapping[int, str]


def classify(model: ReadyModel, pictures: Pictures, machine: Machine) -> Iterator[Answers]:
    """Score pictures, batch by batch: the values are probabilities (b, K).

    Raises BenchError for a model without a classifier.
    """
    if not model.num_classes:
        raise BenchError(
            f"{model.spec.name} with {model.weights.name} has no classifier: these weights were only "
            "pretrained; features can be extracted"
        )
    for answers in _run(model, pictures, machine, LOGITS):
        probabilities = torch.from_numpy(answers.values).softmax(1).numpy()
        yield Answers(answers.rows, probabilities, answers.failures)


def embed(model: ReadyModel, pictures: Pictures, machine: Machine) -> Iterator[Answers]:
    """Extract pooled features of pictures, batch by batch: the values are (b, D)."""
    yield from _run(model, pictures, machine, OWN)


def _run(model: ReadyModel, pictures: Pictures, machine: Machine, layer: str) -> Iterator[Answers]:
    unreadable = Unreadable(pictures, True)
    for piece in forward_all(model.network, model.transform(), unreadable, machine, (layer,)):
        values = piece.values.get(layer, np.empty((0, 1), np.float32))
        yield Answers(piece.rows, values, piece.failures)


def save_features(
    path: Path, features: np.ndarray, names: Sequence[str], model: ReadyModel, machine: Machine
) -> None:
    """Write features (n, d) with the names (n,) of their images and what made them, whole or not at all."""
    about = {
        "model": model.spec.name,
        "weights": model.weights.name,
        "weights_sha256": model.weights.sha256,
        "preprocessing": model.preprocessing.identity(),
        "precision": machine.precision,
    }
    buffer = io.BytesIO()
    np.savez(buffer, features=features, paths=np.array(names), about=np.array(json.dumps(about)))
    write_whole(path, buffer.getvalue())


def demo_image() -> Path:
    """Return the path of a photograph that comes with the package (CC BY 2.0, see demo/README.md)."""
    return Path(__file__).parent / "demo" / "demo.JPEG"
