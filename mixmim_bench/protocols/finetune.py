"""`finetune` for classification: every weight of the backbone is trained with a new head."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mixmim_bench.errors import BenchError
from mixmim_bench.protocols import Fitted, Predictions

if TYPE_CHECKING:
    from mixmim_bench.bench import Split, Workbench


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """MixMIM-B's fine-tuning on ImageNet-1K (Sense-X/MixMIM, exp/base_600ep/finetune.sh).

    Nothing is chosen, so the fit is on train and val together, as in the papers. The learning rate is
    base_lr * batch_size / 256. The preset `random` is for weights that were never trained: plain AdamW
    without what regularises a long fine-tuning.
    """

    name: ClassVar[str] = "finetune"
    title: ClassVar[str] = "Fine-tuning"
    kind: ClassVar[str] = "classification"
    version: ClassVar[int] = 1
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

    def __post_init__(self) -> None:
        if self.warmup_epochs >= self.epochs:
            raise BenchError(
                f"warmup_epochs is {self.warmup_epochs} and must be below epochs, which is {self.epochs}"
            )

    def images(self, counts: Mapping[str, int]) -> dict[str, int]:
        seen = counts["train"] + counts["val"]
        return {"forward": counts["test"], "train": seen * self.epochs}

    def fit(self, bench: "Workbench", train: "Split", val: "Split") -> Fitted:
        """Train on train and val; the scores are logits."""
        import numpy as np

        from mixmim_bench import training
        from mixmim_bench.data.images import join

        network = bench.backbone(num_classes=bench.num_classes, drop_path_rate=self.drop_path)
        log = training.train(network, join([train.part, val.part]), self, bench)

        def predict(split: "Split") -> Predictions:
            return training.predict(network, split, bench)

        return Fitted(predict, arrays={"train_loss": np.array(log)})


PROTOCOL = Finetune
