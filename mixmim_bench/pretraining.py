"""Pretrain a MixMIM on images without labels, and write a checkpoint that `--weights` accepts."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixmim_bench import processes
from mixmim_bench.atomic import read_json, write_whole
from mixmim_bench.counting import count_forward
from mixmim_bench.data.dataset import open_task
from mixmim_bench.data.files import scan, scanned
from mixmim_bench.data.images import EXTENSIONS, Part, join
from mixmim_bench.data.index import stamp
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.data.transforms import ImageOnly, train_transform
from mixmim_bench.errors import BenchError
from mixmim_bench.hyperparameters import require, require_bounds
from mixmim_bench.machine import Machine
from mixmim_bench.modelfile import open_model
from mixmim_bench.models.build import own_size, preprocessing
from mixmim_bench.models.checkpoints import load_weights
from mixmim_bench.models.pretraining import MixMIMPretraining, pretraining_model
from mixmim_bench.progress import Stages
from mixmim_bench.protocols.contract import TRAIN_WORK
from mixmim_bench.provenance import provenance
from mixmim_bench.specs import ModelSpec, digest
from mixmim_bench.suite.selection import select_tasks
from mixmim_bench.training import loop
from mixmim_bench.training.checkpoints import remove, write_weights
from mixmim_bench.training.contract import Environment, Schedule, scaled
from mixmim_bench.training.objectives import Reconstructing

CHECKPOINT = "checkpoint.pth"
RECORD = "pretraining.json"


@dataclass(frozen=True, kw_only=True)
class PretrainingRecipe:
    """MixMIM-B's pretraining on ImageNet-1K (Sense-X/MixMIM, exp/base_600ep/pretrain.sh).

    The learning rate is base_lr * batch_size / 256. OpenMMLab's recipe differs in epochs (300) and in
    decoder_norm_eps (1e-6). Two values of mask_ratio are the bounds of a ratio that is drawn for each batch.
    """

    epochs: int = 600
    batch_size: int = 2048
    base_lr: float = 1.5e-4
    min_lr: float = 0.0
    warmup_epochs: float = 40.0
    optimizer: str = "adamw"
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 0.05
    clip_grad: float = 0.0  # 0: not clipped
    mask_ratio: tuple[float, ...] = (0.5,)
    norm_pix_loss: bool = True
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    decoder_norm_eps: float = 1e-5
    crop_scale: tuple[float, ...] = (0.2, 1.0)
    crop_ratio: tuple[float, ...] = (0.75, 4 / 3)
    hflip: float = 0.5

    def __post_init__(self) -> None:
        for name in ("epochs", "decoder_dim", "decoder_depth", "decoder_num_heads"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1")
        require(
            self.batch_size >= 2 and self.batch_size % 2 == 0, "batch_size must be even: images are paired"
        )
        require(self.base_lr > 0.0, "base_lr must be above 0")
        for name in ("min_lr", "warmup_epochs", "weight_decay", "clip_grad"):
            require(getattr(self, name) >= 0.0, f"{name} must be at least 0")
        require(self.warmup_epochs < self.epochs, "warmup_epochs must be below epochs")
        require(0.0 <= self.hflip <= 1.0, "hflip must be from 0 to 1")
        require(len(self.mask_ratio) in (1, 2), "mask_ratio must be one number, or two bounds")
        require(self.mask_ratio[0] <= self.mask_ratio[-1], "mask_ratio must be in ascending order")
        require_bounds(self, "crop_scale", "crop_ratio")

    def schedule(self, images: int) -> Schedule:
        """Return the schedule for some images, which are paired."""
        batch_size = min(self.batch_size, images // 2 * 2)
        return Schedule(
            epochs=self.epochs,
            batch_size=batch_size,
            lr=scaled(self.base_lr, batch_size),
            min_lr=self.min_lr,
            warmup_epochs=self.warmup_epochs,
            optimizer=self.optimizer,
            betas=self.betas,
            weight_decay=self.weight_decay,
            clip_grad=self.clip_grad,
        )

    def check_mask(self, network: MixMIMPretraining) -> None:
        """Check that each mask leaves cells of both images; raises BenchError."""
        cells, side = network.cells[0] * network.cells[1], network.cell
        for ratio in self.mask_ratio:
            exchanged = int(cells * ratio)
            require(
                0.0 < ratio < 1.0 and 0 < exchanged < cells,
                f"mask_ratio {ratio:g} exchanges {exchanged} of {cells} cells of {side} x {side} pixels; at "
                f"least 1 and at most {cells - 1} must be exchanged",
            )


@dataclass(frozen=True)
class Pretrained:
    """The result of a pretraining; `losses` are the means of the epochs."""

    checkpoint: Path
    losses: list[float]
    images: int


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A pretraining: network, images and recipe. `weights` is a pretraining checkpoint to start from."""

    model: ModelSpec
    part: Part
    recipe: PretrainingRecipe = field(default_factory=PretrainingRecipe)
    size: tuple[int, int]
    seed: int = 0
    weights: Path | None = None
    skip_unreadable: bool = False

    def network(self) -> MixMIMPretraining:
        """Build the network; raises BenchError if the size, the mask or the weights do not fit."""
        decoder = {
            name: getattr(self.recipe, name)
            for name in ("norm_pix_loss", *(n for n in _fields(self.recipe) if n.startswith("decoder_")))
        }
        network = build_network(self.model, self.size, self.seed, **decoder)
        self.recipe.check_mask(network)
        if self.weights is not None:
            load_weights(network, self.weights, self.model.arch)
        return network

    def settings(self, machine: Machine) -> dict[str, Any]:
        """Return what the weights depend on, as JSON values."""
        values = {key: getattr(self.recipe, key) for key in _fields(self.recipe)}
        return {
            "model": self.model.arch,
            "kwargs": dict(self.model.kwargs),
            "size": list(self.size),
            "seed": self.seed,
            "weights": None if self.weights is None else _hash_of(self.weights),
            "images": stamp(self.part),
            "precision": machine.precision,
            **{key: list(value) if isinstance(value, tuple) else value for key, value in values.items()},
        }


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fields(recipe: PretrainingRecipe) -> list[str]:
    return [each.name for each in dataclasses.fields(recipe)]


def build_network(model: ModelSpec, size: tuple[int, int], seed: int, **decoder: Any) -> MixMIMPretraining:
    """Build a pretraining network for images of a size; raises BenchError."""
    if not model.arch.startswith("mixmim"):
        raise BenchError(f"{model.name} is not a MixMIM: mixing and window attention belong to its network")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return pretraining_model(model.arch, **{**model.kwargs, "img_size": size, **decoder})
    except (ValueError, AssertionError) as error:
        raise BenchError(f"{model.name} cannot be pretrained: {error}") from error


def open_images(data: str, roots: DataRoots | None = None, with_val: bool = True) -> Part:
    """List the images of a folder, or those of a task's train and val, without decoding them.

    Args:
        data: the folder, or the name of the task.
        roots: where datasets are.
        with_val: whether val of a task is used.

    Raises BenchError.
    """
    folder = Path(data)
    if folder.is_dir():
        found = sorted(scan(folder))
        if not found:
            raise BenchError(f"no images in {folder} (extensions: {', '.join(sorted(EXTENSIONS))})")
        ids = np.array([name for name, _, _ in found])
        return Part(ids, np.zeros(len(found), dtype=np.int64), scanned(folder, found))
    if "/" in data and not data.endswith(".toml"):
        raise BenchError(f"--data {data}: there is no such folder")
    (task,) = select_tasks([data], ())
    if "train" not in task.roles:
        raise BenchError(f"--data {data}: the task has test images only, which nothing may be trained on")
    splits = open_task(task, roots).splits
    return join([splits[role].part for role in ("train", "val") if role == "train" or with_val])


def describe(model: str, image_size: int | None) -> tuple[ModelSpec, tuple[int, int]]:
    """Find a model and the size that it is pretrained at, by default its own."""
    spec = open_model(model)
    return spec, (image_size, image_size) if image_size else own_size(spec)


def pretrain(
    pretraining: Pretraining,
    out: Path,
    machine: Machine,
    stages: Stages,
    trackers: tuple[str, ...] = (),
    keep_every: int = 0,
) -> Pretrained:
    """Pretrain, or continue an interrupted pretraining, and write `checkpoint.pth` to a folder.

    Beside it stand `pretraining.json` (settings, losses, provenance) and `logs/`. In a job of several
    processes all call this.

    Args:
        pretraining: what to do.
        out: the folder.
        machine: device and precision.
        stages: shows progress.
        trackers: of Accelerate, by name.
        keep_every: also keep the weights of every so many epochs, as `checkpoint-EPOCH.pth`.

    Raises:
        BenchError: the folder holds another pretraining, or the input cannot be used.
    """
    recipe, part = pretraining.recipe, pretraining.part
    if len(part) < 2:
        raise BenchError(f"pretraining mixes images in pairs and needs at least 2, not {len(part)}")
    network = pretraining.network()
    settings = processes.broadcast(pretraining.settings(machine))  # times of files may differ elsewhere
    known = _open_folder(out, settings)
    if known.get("losses") and (out / CHECKPOINT).exists():
        return Pretrained(out / CHECKPOINT, known["losses"], len(part))
    transform = train_transform(
        dataclasses.replace(preprocessing(pretraining.model), size=pretraining.size),
        crop_scale=recipe.crop_scale,
        crop_ratio=recipe.crop_ratio,
        hflip=recipe.hflip,
    )
    checkpoints = out / "unfinished" / digest(settings)
    environment = Environment(
        machine=machine,
        seed=pretraining.seed,
        stages=stages,
        skip_unreadable=pretraining.skip_unreadable,
        checkpoints=checkpoints,
        logs=out / "logs",
        trackers=trackers,
        keep=_keeping(out, settings),
        keep_every=keep_every,
    )
    work = TRAIN_WORK * count_network(pretraining)
    clock = time.perf_counter()
    trained = loop.train(
        network, part, ImageOnly(transform), Reconstructing(recipe.mask_ratio), recipe.schedule(len(part)),
        environment, "pretraining", work,
    )  # fmt: skip
    if processes.is_main():
        write_weights(out / CHECKPOINT, network.state_dict(), {"epoch": recipe.epochs, "settings": settings})
        record = {
            "settings": settings,
            "losses": trained.losses,
            "images": len(part),
            "unreadable": len(trained.unreadable),
            "notes": list(trained.notes),
            "seconds": round(time.perf_counter() - clock, 1),  # since the last start
            "provenance": {**provenance(), **machine.describe(), "processes": processes.count()},
        }
        write_whole(out / RECORD, json.dumps(record, indent=1).encode())
        remove(out / "unfinished")
    return Pretrained(out / CHECKPOINT, trained.losses, len(part))


def count_network(pretraining: Pretraining) -> float:
    """Count the GMACs of one image through encoder and decoder."""
    with torch.device("meta"):
        network = dataclasses.replace(pretraining, weights=None).network()
    mask = torch.zeros(network.cells, device="meta")
    images = torch.empty(2, 3, *pretraining.size, device="meta")
    return count_forward(lambda: network(images, mask)).total / 2 / 1e9


def _open_folder(out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Create the folder, or check that it holds the same pretraining; returns its record."""
    known = read_json(out / RECORD)
    if known and known.get("settings") != settings:
        theirs = known.get("settings") or {}
        differing = sorted(key for key in {*theirs, *settings} if theirs.get(key) != settings.get(key))
        raise BenchError(
            f"--out {out} holds another pretraining, with other {', '.join(differing)}; use another folder"
        )
    if not known and out.exists() and any(out.iterdir()):
        raise BenchError(f"--out {out} holds other files; use another folder")
    processes.total(0)  # no process writes before all have looked
    if not known and processes.is_main():
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / RECORD, json.dumps({"settings": settings}, indent=1).encode())
    return known


def _keeping(out: Path, settings: Mapping[str, Any]) -> Callable[[int, dict[str, torch.Tensor]], None]:
    def keep(epochs: int, weights: dict[str, torch.Tensor]) -> None:
        about = {"epoch": epochs, "settings": dict(settings)}
        write_weights(out / f"checkpoint-{epochs}.pth", weights, about)

    return keep
