"""`linear-sgd` for classification: linear heads trained on augmented images behind a frozen backbone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mixmim_bench.hyperparameters import require, require_bounds
from mixmim_bench.protocols.contract import Fitted, FrozenProtocol, Workload, scored_again

if TYPE_CHECKING:
    import torch

    from mixmim_bench.data.dataset import Split
    from mixmim_bench.protocols.workbench import Workbench
    from mixmim_bench.training.contract import Objective, Trained
    from mixmim_bench.training.frozen import FrozenProbe

OPTIMIZERS = ("lars", "sgd")
NORMS = ("batch", "none")


@dataclass(frozen=True, kw_only=True)
class LinearSGD(FrozenProtocol):
    """The recipe of MAE's linear probing; the preset `dinov2` is that of DINOv2.

    Defaults: LARS with momentum 0.9 and without weight decay, 90 epochs, 10 of warm-up and a cosine to 0,
    BatchNorm without affine parameters before the head, RandomResizedCrop and flip (arXiv 2111.06377;
    facebookresearch/mae, main_linprobe.py and FINETUNE.md). `dinov2`: SGD, 13 learning rates times the layers
    and poolings, all heads trained in one pass, 12,500 steps of 1,024 images on ImageNet-1K, which are 10
    epochs (arXiv 2304.07193; facebookresearch/dinov2, eval/linear.py). A learning rate is
    base_lr * batch_size / 256.

    With several heads, the best one on **val** is selected and trained again on train and val; a single head
    is trained on both at once. The only layer between pooling and head is the optional BatchNorm, which has
    no weights. On train, the loss is that of the last epoch, and the metrics are those of images that are not
    augmented: 10,000 at most, and no more than a tenth of the images of all epochs.
    """

    name: ClassVar[str] = "linear-sgd"
    title: ClassVar[str] = "linear probe by SGD"
    kind: ClassVar[str] = "classification"
    version: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "dinov2": {
            "optimizer": "sgd",
            "base_lr": (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
            "epochs": 10,
            "warmup_epochs": 0.0,
            "batch_size": 1024,
            "norm": "none",
            "layers": ("auto",),
        },
    }

    optimizer: str = "lars"
    base_lr: tuple[float, ...] = (0.1,)
    momentum: float = 0.9
    epochs: int = 90
    warmup_epochs: float = 10.0
    batch_size: int = 16384
    norm: str = "batch"
    layers: tuple[str, ...] = ("own",)
    head_init_std: float = 0.01
    hflip: float = 0.5
    crop_scale: tuple[float, ...] = (0.08, 1.0)
    crop_ratio: tuple[float, ...] = (0.75, 4 / 3)

    def __post_init__(self) -> None:
        require(self.optimizer in OPTIMIZERS, f"optimizer must be one of {', '.join(OPTIMIZERS)}")
        require(self.norm in NORMS, f"norm must be one of {', '.join(NORMS)}")
        require(self.epochs >= 1 and self.batch_size >= 1, "epochs and batch_size must be at least 1")
        require(len(self.base_lr) > 0 and min(self.base_lr) > 0.0, "base_lr must be numbers above 0")
        require(len(self.layers) > 0, "layers must name at least one layer")
        require(0.0 <= self.momentum < 1.0, "momentum must be at least 0 and below 1")
        require(self.head_init_std >= 0.0, "head_init_std must be at least 0")
        require(0.0 <= self.hflip <= 1.0, "hflip must be from 0 to 1")
        require(0.0 <= self.warmup_epochs < self.epochs, "warmup_epochs must be at least 0 and below epochs")
        require_bounds(self, "crop_scale", "crop_ratio")

    @property
    def _chooses(self) -> bool:
        return len(self.base_lr) > 1 or len(self.layers) > 1 or "auto" in self.layers

    def images(self, counts: Mapping[str, int]) -> Workload:
        seen = self.epochs * (counts["train"] + counts["val"])  # forward only: the backbone does not learn
        tried = self.epochs * counts["train"] + counts["val"] if self._chooses else 0
        scored = self._scored(counts["train"] + counts["val"])
        return Workload(forward=seen + tried + scored + counts["test"])

    def _scored(self, images: int) -> int:
        """Return how many of the images that the head was trained on are scored."""
        return scored_again(images, passes=self.epochs * images)

    def fit(self, bench: "Workbench", train: "Split", val: "Split") -> Fitted:
        """Train all heads on train, select one on val, train it on both."""
        import numpy as np

        from mixmim_bench.data.images import join
        from mixmim_bench.protocols.on_train import of_scores, sample
        from mixmim_bench.protocols.tuning import read_images
        from mixmim_bench.scoring.metrics import value
        from mixmim_bench.scoring.predictions import ClassScores

        names = [name for choice in self.layers for name in bench.layers(choice)]
        heads = [(layer, base_lr) for layer in dict.fromkeys(names) for base_lr in self.base_lr]
        arrays: dict[str, Any] = {}
        chosen: dict[str, Any] = {}
        if len(heads) > 1:
            probe, _ = self._train(bench, [train], heads, "training all heads")
            of_val = bench.features_of_layers(val, list(dict.fromkeys(layer for layer, _ in heads)))
            scores = [
                value(bench.metric, of_val[layer].y, probe.logits(i, of_val[layer].x))
                for i, (layer, _) in enumerate(heads)
            ]
            arrays = {
                "layer": np.array([layer for layer, _ in heads]),
                "base_lr": np.array([base_lr for _, base_lr in heads]),
                f"val_{bench.metric}": np.array(scores),
            }
            chosen[f"val_{bench.metric}"] = max(scores)
            heads = [heads[int(np.argmax(scores))]]
        layer, base_lr = heads[0]
        probe, trained = self._train(bench, [train, val], heads, "training the head")

        def predict(split: "Split") -> ClassScores:
            features = bench.features(split, layer)
            return ClassScores(features.ids, features.y, probe.logits(0, features.x))

        part = join([train.part, val.part])
        known = read_images(
            bench.frozen(train), layer, sample(part, self._scored(len(part))), bench, "scoring train"
        )
        of_train = [(known.y, probe.logits(0, known.x))] if len(known) else []  # none could be read
        on_train = of_scores(bench.metrics, of_train, likelihood=False)
        chosen |= {"layer": layer, "base_lr": base_lr}
        weight: Any = probe.heads[0].weight
        return Fitted(
            predict,
            chosen=chosen,
            arrays={**arrays, "train_loss": np.array(trained.losses)},
            head_params=weight.numel() + bench.num_classes,
            head_macs=weight.numel(),
            train={**on_train, "loss": trained.losses[-1]},
        )

    def _objective(self) -> "Objective":
        from mixmim_bench.training.objectives import ClassifyingByHeads

        return ClassifyingByHeads()

    def _train(
        self, bench: "Workbench", splits: "Sequence[Split]", heads: list[tuple[str, float]], name: str
    ) -> "tuple[FrozenProbe, Trained]":
        from mixmim_bench.data.images import join
        from mixmim_bench.data.transforms import ImageOnly, train_transform
        from mixmim_bench.training import loop
        from mixmim_bench.training.contract import Schedule, scaled
        from mixmim_bench.training.frozen import FrozenProbe

        probe = FrozenProbe(
            bench.frozen(splits[0]),
            [layer for layer, _ in heads],
            bench.num_classes,
            batch_norm=self.norm == "batch",
            init_std=self.head_init_std,
            seed=bench.seed,
            machine=bench.machine,
            size=bench.run.size,
        )
        part = join([split.part for split in splits])
        batch_size = min(self.batch_size, len(part))
        rates = [scaled(base_lr, batch_size) for _, base_lr in heads]

        def optimizer(network: Any, schedule: Schedule) -> "torch.optim.Optimizer":
            del schedule  # each head has a rate of its own
            return network.optimizer(self.optimizer, rates, self.momentum)

        transform = train_transform(
            bench.run.preprocessing,
            crop_scale=self.crop_scale,
            crop_ratio=self.crop_ratio,
            hflip=0.0 if "hflip" in bench.run.task.forbid else self.hflip,
        )
        schedule = Schedule(
            epochs=self.epochs, batch_size=batch_size, lr=max(rates), warmup_epochs=self.warmup_epochs
        )
        trained = loop.train(
            probe,
            part,
            ImageOnly(transform),
            self._objective(),
            schedule,
            bench.environment(*splits),
            name,
            work=bench.gmacs,
            make_optimizer=optimizer,
            whole=True,
        )
        bench.note_training(splits, trained)
        return probe, trained


PROTOCOL = LinearSGD
