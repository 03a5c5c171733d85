"""`finetune` for segmentation: UperNet on all weights of the backbone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mixmim_bench.hyperparameters import require, require_bounds
from mixmim_bench.protocols.contract import SCORED_MAPS, TRAIN_WORK, Fitted, Protocol, Workload, scored_again
from mixmim_bench.protocols.segmentation import EVALUATIONS

if TYPE_CHECKING:
    from mixmim_bench.data.dataset import Split
    from mixmim_bench.protocols.workbench import Workbench
    from mixmim_bench.scoring.predictions import PixelCounts


@dataclass(frozen=True, kw_only=True)
class FinetuneSegmentation(Protocol):
    """UperNet on ADE20K, by the recipe of a hierarchical backbone with masked pretraining.

    MixMIM's own recipe was not released. Optimizer, learning rate, layer decay, drop path, warm-up and
    sliding evaluation are ConvMAE-B's (Alpha-VL/ConvMAE, SEG/configs/convmae/
    upernet_convmae_base_512_slide_160k_ade20k.py); decoder, auxiliary head and augmentation are Swin-B's
    (SwinTransformer/Swin-Transformer-Semantic-Segmentation, configs/_base_/models/upernet_swin.py and
    configs/_base_/datasets/ade20k.py). The learning rate is base_lr * batch_size / 256, 1e-4 for 16 images.
    Nothing is selected, so train and val are trained on together. On train, the loss is that of the last
    epoch, with the auxiliary head's, and the metrics are those of 200 images at most, scored as test is.

    `image_size` is the side of a crop, and of the shorter side of images in evaluation; `stride` of the
    sliding windows is 2/3 of it unless stated. `evaluation` is 'slide' or 'whole'.

    Presets:

    - `quick`: 1/20 of the steps.
    - `random`, for random weights: a higher learning rate, the same in all layers, and no drop path.
    """

    name: ClassVar[str] = "finetune"
    title: ClassVar[str] = "fine-tuning (UperNet)"
    kind: ClassVar[str] = "segmentation"
    version: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    dense: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "quick": {"steps": 8_000, "warmup_steps": 300},
        "random": {"base_lr": 6.4e-2, "layer_decay": 1.0, "drop_path": 0.0},
    }

    steps: int = 160_000
    batch_size: int = 16
    base_lr: float = 1.6e-3
    warmup_steps: int = 1_500
    warmup_lr: float = 1e-10
    weight_decay: float = 0.05
    layer_decay: float = 0.75
    drop_path: float = 0.2
    optimizer: str = "adamw"
    betas: tuple[float, ...] = (0.9, 0.999)
    image_size: int = 0  # 0: that of the task or model
    width: int = 512  # of the decoder
    dropout: float = 0.1
    auxiliary: float = 0.4  # weight of the second head's loss
    scale: tuple[float, ...] = (0.5, 2.0)
    fullest: float = 0.75
    hflip: float = 0.5
    photometric: bool = True
    evaluation: str = "slide"
    stride: int = 0

    def __post_init__(self) -> None:
        require(self.steps >= 1 and self.batch_size >= 1, "steps and batch_size must be at least 1")
        require(self.warmup_steps < self.steps, "warmup_steps must be below steps")
        require(self.base_lr > 0.0, "base_lr must be above 0")
        require(0.0 < self.layer_decay <= 1.0, "layer_decay must be above 0 and at most 1")
        require(self.evaluation in EVALUATIONS, f"evaluation must be one of {', '.join(EVALUATIONS)}")
        require(0.0 < self.fullest <= 1.0, "fullest must be above 0 and at most 1")
        require_bounds(self, "scale")

    def images(self, counts: Mapping[str, int]) -> Workload:
        scored = self._scored(counts["train"] + counts["val"])
        return Workload(forward=counts["test"] + scored, train=self.steps * self.batch_size)

    def _scored(self, images: int) -> int:
        """Return how many of the training images are scored."""
        return scored_again(images, TRAIN_WORK * self.steps * self.batch_size, SCORED_MAPS)

    def input_size(self) -> int:
        return self.image_size

    def fit(self, bench: "Workbench", train: "Split", val: "Split") -> Fitted:
        """Train on train and val together."""
        import numpy as np

        from mixmim_bench.data.images import join
        from mixmim_bench.data.joint import SegmentationTrain
        from mixmim_bench.data.masks import IGNORED
        from mixmim_bench.models.segmenter import UperNet
        from mixmim_bench.protocols.dense import cost_of, layerwise, open_pyramid
        from mixmim_bench.protocols.label_maps import evaluation_of, predict_maps, score_on_train
        from mixmim_bench.training import loop
        from mixmim_bench.training.contract import Schedule, scaled
        from mixmim_bench.training.objectives import Segmenting

        pyramid, notes = open_pyramid(bench, drop_path=self.drop_path)
        evaluation = evaluation_of(pyramid, self.evaluation, notes)
        network = UperNet(
            pyramid,
            bench.num_classes,
            width=self.width,
            dropout=self.dropout,
            auxiliary=self.auxiliary > 0.0,
            seed=bench.seed,
        )
        size = bench.run.size[0]
        part = join([train.part, val.part])
        batch_size = min(self.batch_size, len(part))
        trained = loop.train(
            network,
            part,
            SegmentationTrain(
                bench.run.preprocessing,
                size=size,
                scale=self.scale,
                fullest=self.fullest,
                hflip=0.0 if "hflip" in bench.run.task.forbid else self.hflip,
                photometric=self.photometric,
            ),
            Segmenting(IGNORED, self.auxiliary),
            Schedule(
                steps=self.steps,
                batch_size=batch_size,
                lr=scaled(self.base_lr, batch_size),
                decay="poly",
                warmup_steps=self.warmup_steps,
                warmup_lr=self.warmup_lr,
                optimizer=self.optimizer,
                betas=self.betas,
                weight_decay=self.weight_decay,
                layer_decay=self.layer_decay,
            ),
            bench.environment(train, val),
            "fine-tuning",
            work=TRAIN_WORK * bench.gmacs,
            make_optimizer=layerwise,
        )
        bench.note_training([train, val], trained)
        bench.keep_weights(network)
        network.eval()

        stride = self.stride or round(size * 2 / 3)
        on_train = score_on_train(bench, part, self._scored(len(part)), network, evaluation, stride)

        def predict(split: "Split") -> "PixelCounts":
            (counts,) = predict_maps(bench, split, [network], evaluation, stride)
            return counts

        shapes = [(1, *shape) for shape in pyramid.shapes(bench.run.size)]
        params, macs, doubts = cost_of([(network.head, [shapes], 1)])
        return Fitted(
            predict,
            arrays={"train_loss": np.array(trained.losses)},
            notes=(*notes, *doubts),
            head_params=params,
            head_macs=macs,
            train={**on_train, "loss": trained.losses[-1]},
        )


PROTOCOL = FinetuneSegmentation
