"""Load a model by name, classify images with it and extract their features.

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
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from mixmim_bench import facts
from mixmim_bench.atomic import write_whole
from mixmim_bench.data.images import UnreadableImage
from mixmim_bench.data.loading import Unreadable
from mixmim_bench.data.pictures import Pictures
from mixmim_bench.data.transforms import Transform, eval_transform
from mixmim_bench.errors import BenchError
from mixmim_bench.features import LOGITS, OWN
from mixmim_bench.features.engines import Reader, Source, check_engine, choose_engine, open_reader
from mixmim_bench.features.engines.torch import TorchReader
from mixmim_bench.features.extract import forward_all, sample_images
from mixmim_bench.features.keys import custom_code
from mixmim_bench.machine import Machine, open_machine
from mixmim_bench.modelfile import open_model
from mixmim_bench.models.build import build, classes_of, own_size, preprocessing
from mixmim_bench.progress import download_bar
from mixmim_bench.registry import MODELS
from mixmim_bench.specs import AUTO, RANDOM, TORCH, ModelSpec, Weights
from mixmim_bench.weights.find import resolve_weights


class ReadyModel(nn.Module):
    """A network with its weights, preprocessing and class names.

    Without a classifier (pretraining weights have none) the network returns pooled features (B, D).
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
        """Return the logits (B, K) of normalised images (B, 3, H, W)."""
        return self.network(inputs)

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor]:
        """Return the pooled features (B, D) of normalised images (B, 3, H, W), in a tuple as in OpenMMLab."""
        return (self.network.forward_head(self.network.forward_features(inputs), pre_logits=True),)

    def transform(self) -> Transform:
        """Build the evaluation transform: RGB image -> (3, H, W)."""
        return eval_transform(self.preprocessing)


@dataclass(frozen=True)
class ClassName:
    """A readable class name; names are not unique (134 and 517 are both 'crane'), synsets are."""

    name: str
    synset: str = ""


def class_names(network: Any) -> list[ClassName]:
    """Return the class names of a network: timm's for ImageNet, otherwise 'class 0', 'class 1', ..."""
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
    """List the names `get_model` accepts besides timm's: models, then their published weights."""
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

    Args:
        name: a short name, an alias that names published weights, or any timm model.
        pretrained: True for the published weights (downloaded if needed), or the path of a checkpoint.
        device: a torch device.
        num_classes: defaults to that of the weights; any other number gets a new classifier, with a warning.
        img_size: the image size, or (h, w); defaults to the model's own.
        for_features: if a name has several weights, use the pretrained ones, which the suite probes, rather
            than the fine-tuned ones.
        seed: initialises parameters that the weights do not fill; drawn from torch's generator by default.

    Raises:
        BenchError: the name is unknown or the weights do not fit; MissingWeights lists ways to get them.
    """
    spec = open_model(name)
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

    Args:
        model: a model, or the name of one with published weights.
        image: a path, encoded bytes, a PIL image or an RGB array (H, W, 3) or (H, W) of uint8.

    Returns:
        A dict with `pred_scores` (K,), `pred_label`, `pred_score`, `pred_class` and `pred_synset`; for a list
        of images, a list of dicts.

    Raises:
        UnreadableImage: an image cannot be decoded.
        BenchError: the model has no classifier.
    """
    ready = get_model(model, pretrained=True) if isinstance(model, str) else model
    is_list = isinstance(image, list | tuple)
    pictures = Pictures(list(image) if is_list else [image])
    machine = open_machine(str(next(ready.network.parameters()).device), batch_size=32)
    results = []
    for batch in classify(ready, pictures, machine):
        for row, reason in batch.failures.items():
            raise UnreadableImage(f"{pictures.name(row)}: {reason}")
        results += [_result(ready, scores) for scores in batch.values]
    return results if is_list else results[0]


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
    """The outputs of a model for a batch of pictures.

    Attributes:
        rows: (b,) indices of the readable pictures.
        values: (b, d) probabilities or features.
        failures: index of each unreadable picture -> reason.
    """

    rows: np.ndarray
    values: np.ndarray
    failures: Mapping[int, str]


def classify(
    model: ReadyModel, pictures: Pictures, machine: Machine, engine: str = TORCH
) -> Iterator[Answers]:
    """Classify pictures and yield their probabilities (b, K), batch by batch.

    engine: 'torch', 'openvino', or 'auto', which depends on the number of pictures. Raises BenchError for a
    model without a classifier; warns of an engine that cannot compute the model, and uses torch.
    """
    if not model.num_classes:
        raise BenchError(
            f"{model.spec.name} with {model.weights.name} has no classifier: these weights are pretrained "
            "only; use them to extract features"
        )
    for logits in _run(model, pictures, machine, engine, LOGITS):
        probabilities = torch.from_numpy(logits.values).softmax(1).numpy()
        yield Answers(logits.rows, probabilities, logits.failures)


def embed(model: ReadyModel, pictures: Pictures, machine: Machine, engine: str = TORCH) -> Iterator[Answers]:
    """Extract pooled features (b, D) of pictures, batch by batch; engine: see `classify`."""
    yield from _run(model, pictures, machine, engine, OWN)


def _run(
    model: ReadyModel, pictures: Pictures, machine: Machine, engine: str, layer: str
) -> Iterator[Answers]:
    unreadable = Unreadable(pictures, True)
    reader = _open(model, pictures, machine, engine)
    for piece in forward_all(reader, model.transform(), unreadable, machine, (layer,)):
        values = piece.values.get(layer, np.empty((0, 1), np.float32))
        yield Answers(piece.rows, values, piece.failures)


def _open(model: ReadyModel, pictures: Pictures, machine: Machine, engine: str) -> Reader:
    """Open the network with an engine; with torch if that cannot compute it."""
    check_engine(engine, machine)
    size = model.preprocessing.size
    if engine == AUTO:
        engine = choose_engine(machine, len(pictures) * facts.count_gmacs(model.spec, size))
    if engine != TORCH:
        state = sha256()
        for name, tensor in model.network.state_dict().items():
            state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            state.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy())
        source = Source(
            key={"arch": model.spec.arch, "kwargs": dict(model.spec.kwargs), "state": state.hexdigest()}
            | {"size": list(size), "num_classes": model.num_classes}
            | {"arch_version": model.spec.version, "code": custom_code(model.spec.arch)},
            build=lambda: model.network,
            layers=[OWN, LOGITS] if model.num_classes else [OWN],
            sample=lambda: sample_images(pictures, model.transform()),
        )
        try:
            return open_reader(engine, source, machine)
        except BenchError as error:
            warnings.warn(f"computed by torch: {error}", stacklevel=4)
    return TorchReader(model.network, machine)


def save_features(
    path: Path, features: np.ndarray, names: Sequence[str], model: ReadyModel, machine: Machine
) -> None:
    """Write features (n, d), image names (n,) and the model, weights and preprocessing used, atomically."""
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
    """Return the path of the photograph shipped with the package (CC BY 2.0, see demo/README.md)."""
    return Path(__file__).parent / "demo" / "demo.JPEG"
