"""`finetune` for classification: train all weights of the backbone with a new head."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mixmim_bench.errors import BenchError
from mixmim_bench.hyperparameters import require, require_bounds
from mixmim_bench.protocols.contract import TRAIN_WORK, Fitted, Protocol, Workload, later

if TYPE_CHECKING:
    from torch import nn

    from mixmim_bench.data.dataset import Split
    from mixmim_bench.data.images import Part
    from mixmim_bench.data.transforms import JointTransform
    from mixmim_bench.features.extract import Features
    from mixmim_bench.protocols.workbench import Workbench
    from mixmim_bench.scoring.predictions import ClassScores
    from mixmim_bench.training.contract import Schedule

CHECKED = 200  # images of train that are scored after training, to see that something was learnt


@dataclass(frozen=True, kw_only=True)
class Finetune(Protocol):
    """MixMIM-B's fine-tuning on ImageNet-1K (Sense-X/MixMIM, exp/base_600ep/finetune.sh).

    Nothing is selected, so train and val are trained on together, as in the papers. The learning rate is
    base_lr * batch_size / 256. The preset `random` is for random weights: plain AdamW without the
    regularisation of a long fine-tuning.
    """

    name: ClassVar[str] = "finetune"
    title: ClassVar[str] = "fine-tuning"
    kind: ClassVar[str] = "classification"
    version: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "random": {
            "base_lr": 1e-3,
            "head_init_std": 0.02,
            "layer_decay": 1.0,
            "drop_path": 0.0,
            "mixup": 0.0,
            "cutmix": 0.0,
            "smoothing": 0.0,
            "auto_augment": "",
            "reprob": 0.0,
            "hflip": 0.0,
            "crop_scale": (0.8, 1.0),
            "crop_ratio": (0.9, 1.1),
            "warmup_epochs": 0.5,
        },
    }

    epochs: int = 100
    batch_size: int = 1024
    base_lr: float = 5e-4
    min_lr: float = 1e-6
    warmup_epochs: float = 5.0
    weight_decay: float = 0.05
    layer_decay: float = 0.7
    drop_path: float = 0.1
    clip_grad: float = 0.0  # 0: not clipped
    smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    auto_augment: str = "rand-m9-mstd0.5-inc1"
    reprob: float = 0.25
    hflip: float = 0.5
    crop_scale: tuple[float, ...] = (0.08, 1.0)
    crop_ratio: tuple[float, ...] = (0.75, 4 / 3)
    head_init_std: float = 2e-5
    image_size: int = later(0)  # 0: that of task or model

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1")
        for name in ("base_lr", "head_init_std", "layer_decay"):
            require(getattr(self, name) > 0.0, f"{name} must be above 0")
        require(self.image_size >= 0, "image_size must be at least 0")
        for name in ("min_lr", "warmup_epochs", "weight_decay", "clip_grad", "mixup", "cutmix"):
            require(getattr(self, name) >= 0.0, f"{name} must be at least 0")
        for name in ("drop_path", "smoothing", "reprob", "hflip"):
            require(0.0 <= getattr(self, name) <= 1.0, f"{name} must be from 0 to 1")
        require_bounds(self, "crop_scale", "crop_ratio")
        require(
            self.warmup_epochs < self.epochs,
            f"warmup_epochs is {self.warmup_epochs} and must be below epochs, which is {self.epochs}",
        )

    def input_size(self) -> int:
        return self.image_size

    def images(self, counts: Mapping[str, int]) -> Workload:
        seen = counts["train"] + counts["val"]
        checked = min(CHECKED, counts["train"])
        return Workload(forward=counts["test"] + checked, train=seen * self.epochs)

    def fit(self, bench: "Workbench", train: "Split", val: "Split") -> Fitted:
        """Train on train and val; the scores are logits."""
        import numpy as np

        from mixmim_bench.data.images import join
        from mixmim_bench.training import loop
        from mixmim_bench.training.objectives import Classifying

        network, notes = self._network(bench)
        objective = Classifying(bench.num_classes, self.mixup, self.cutmix, self.smoothing)
        trained = loop.train(
            network,
            join([train.part, val.part]),
            self._transform(bench),
            objective,
            self._schedule(len(train.part) + len(val.part)),
            bench.environment(train, val),
            "fine-tuning",
            TRAIN_WORK * bench.gmacs,
        )
        bench.note_training([train, val], trained)
        accuracy, more = _check_learning(network, train, bench)

        def predict(split: "Split") -> "ClassScores":
            return score(network, split, bench)

        head = loop.classifier(network)
        params = sum(parameter.numel() for parameter in head.parameters())
        macs = sum(parameter.numel() for parameter in head.parameters() if parameter.ndim > 1)
        arrays = {"train_loss": np.array(trained.losses), "train_top1": np.array(accuracy)}
        return Fitted(predict, arrays=arrays, notes=(*notes, *more), head_params=params, head_macs=macs)

    def _network(self, bench: "Workbench") -> "tuple[nn.Module, tuple[str, ...]]":
        """Build the backbone with a new head; not every architecture has stochastic depth."""
        from mixmim_bench.training.loop import classifier

        notes: tuple[str, ...] = ()
        try:
            network = bench.backbone(num_classes=bench.num_classes, drop_path_rate=self.drop_path)
        except BenchError as error:
            if "drop_path_rate" not in str(error):
                raise
            network = bench.backbone(num_classes=bench.num_classes)
            if self.drop_path > 0.0:
                notes = (f"drop_path {self.drop_path} ignored: {bench.run.model.arch} does not support it",)
        _initialise(classifier(network), self.head_init_std, bench.seed)
        return network, notes

    def _transform(self, bench: "Workbench") -> "JointTransform":
        from mixmim_bench.data.transforms import ImageOnly, train_transform

        return ImageOnly(
            train_transform(
                bench.run.preprocessing,
                crop_scale=self.crop_scale,
                crop_ratio=self.crop_ratio,
                hflip=0.0 if "hflip" in bench.run.task.forbid else self.hflip,
                auto_augment=self.auto_augment,
                reprob=self.reprob,
            )
        )

    def _schedule(self, images: int) -> "Schedule":
        from mixmim_bench.training.contract import Schedule, scaled

        batch_size = min(self.batch_size, images)
        return Schedule(
            epochs=self.epochs,
            batch_size=batch_size,
            lr=scaled(self.base_lr, batch_size),
            min_lr=self.min_lr,
            warmup_epochs=self.warmup_epochs,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            clip_grad=self.clip_grad,
        )


def _initialise(head: "nn.Module", std: float, seed: int) -> None:
    """Initialise a linear head as in the recipe."""
    from torch import nn

    from mixmim_bench.seeding import generator

    if isinstance(head, nn.Linear):
        nn.init.trunc_normal_(head.weight, std=std, generator=generator(seed))
        if head.bias is not None:
            nn.init.zeros_(head.bias)


def score(network: "nn.Module", split: "Split", bench: "Workbench") -> "ClassScores":
    """Score the classes of a split with a trained network; the scores are logits."""
    from mixmim_bench.scoring.predictions import ClassScores

    logits = _logits(network, split.part, bench, f"scoring {split.role}")
    bench.skipped[split.role] = logits.unreadable
    bench.note_digests(split, logits.rows, logits.digests)
    return ClassScores(logits.ids, logits.y, logits.x)


def _check_learning(
    network: "nn.Module", train: "Split", bench: "Workbench"
) -> tuple[float, tuple[str, ...]]:
    """Score a sample of train without augmentation; returns its accuracy, and a note if it is at chance."""
    import numpy as np

    from mixmim_bench.scoring.statistics import mcnemar_mid_p

    sample = np.random.default_rng(bench.seed).permutation(len(train.part))[:CHECKED]
    logits = _logits(network, train.part.take(np.sort(sample)), bench, "checking what was learnt")
    right = logits.x.argmax(1) == logits.y
    majority = logits.y == np.bincount(train.part.labels).argmax()
    p = mcnemar_mid_p(int((right & ~majority).sum()), int((majority & ~right).sum()))
    half_of_errors = right.mean() >= (1 + majority.mean()) / 2  # as where nearly all images are of one class
    if half_of_errors or (right.mean() > majority.mean() and p < 0.05):
        return float(right.mean()), ()
    return float(right.mean()), (
        f"train accuracy, {100 * right.mean():.1f} % of {len(right)} images, is not significantly above that "
        f"of the most frequent class, {100 * majority.mean():.1f} %: too few steps, or an unsuitable recipe",
    )


def _logits(network: "nn.Module", part: "Part", bench: "Workbench", name: str) -> "Features":
    from mixmim_bench.features import LOGITS
    from mixmim_bench.features.engines.torch import TorchReader
    from mixmim_bench.features.extract import extract_together

    with bench.stages.stage(name, len(part), bench.gmacs) as advance:
        return extract_together(
            TorchReader(network, bench.machine),
            part,
            bench.transform(),
            bench.machine,
            bench.run.task.skip_unreadable,
            advance,
            LOGITS,
        )


PROTOCOL = Finetune
