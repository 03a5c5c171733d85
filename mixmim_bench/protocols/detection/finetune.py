"""`finetune` for detection: Mask R-CNN on all weights of the backbone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mixmim_bench.hyperparameters import require, require_bounds
from mixmim_bench.protocols.contract import Fitted, Protocol, Workload

if TYPE_CHECKING:
    from mixmim_bench.data.dataset import Split
    from mixmim_bench.protocols.workbench import Workbench
    from mixmim_bench.scoring.predictions import Detections

DECAYS = ("cosine", "steps")


@dataclass(frozen=True, kw_only=True)
class FinetuneDetection(Protocol):
    """Mask R-CNN with a feature pyramid network on COCO, by the recipe of a hierarchical masked backbone.

    MixMIM's own recipe was not released. Epochs, batch, learning rate, weight decay, cosine, warm-up, drop
    path and large-scale jitter are ConvMAE-B's (Alpha-VL/ConvMAE, DET/configs/convmae/
    convmae_base_mask_rcnn_FPN_25ep.py); the layer decay is ViTDet-B's (facebookresearch/detectron2,
    projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py), ConvMAE having none. The detector is
    torchvision's, with its heads of two linear layers and without their norms. The learning rate is
    base_lr * batch_size / 256, 8e-5 for 32 images. Batch norm of the backbone keeps its statistics. Sets
    without masks train Faster R-CNN. Nothing is selected, so train and val are trained on together. On train,
    the loss of the last epoch is recorded, the sum of those of the detector's parts.

    Large-scale jitter enlarges the longer side to `image_size` times a scale from `jitter`; with `shorter`,
    the shorter side is one of these, and the longer at most `image_size`, as in `eval_shorter` for
    evaluation. `steps`, if not 0, counts instead of `epochs`; the warm-up takes a tenth of the steps at most.
    `repeat_below`: images with classes in a smaller share of the training images are repeated (LVIS).

    Presets:

    - `1x`, `3x`: 12 and 36 epochs as Swin's (SwinTransformer/Swin-Transformer-Object-Detection,
      configs/swin/mask_rcnn_swin_tiny_patch4_window7_mstrain_480-800_adamw_1x_coco.py and its 3x), without
      its random crops; 1x has one size, as mmdetection's, whose warm-up of 1,000 steps both have. Longer
      sides have 1,344 pixels at most, the multiple of 32 that 1,333 are padded to.
    - `quick`: 2 epochs with images of 512 pixels.
    - `random`, for random weights: a higher learning rate, the same in all layers, and no drop path.
    """

    name: ClassVar[str] = "finetune"
    title: ClassVar[str] = "fine-tuning (Mask R-CNN)"
    kind: ClassVar[str] = "detection"
    version: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    dense: ClassVar[bool] = True
    frozen: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "1x": {
            "epochs": 12,
            "batch_size": 16,
            "base_lr": 1.6e-3,
            "weight_decay": 0.05,
            "decay": "steps",
            "milestones": (8 / 12, 11 / 12),
            "warmup_steps": 1000,
            "image_size": 1344,
            "shorter": (800,),
            "eval_shorter": 800,
        },
        "3x": {
            "epochs": 36,
            "batch_size": 16,
            "base_lr": 1.6e-3,
            "weight_decay": 0.05,
            "decay": "steps",
            "milestones": (27 / 36, 33 / 36),
            "warmup_steps": 1000,
            "drop_path": 0.2,
            "image_size": 1344,
            "shorter": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
            "eval_shorter": 800,
        },
        "quick": {"epochs": 2, "image_size": 512, "warmup_steps": 250},
        "random": {"base_lr": 3.2e-2, "layer_decay": 1.0, "drop_path": 0.0},
    }

    epochs: int = 25
    steps: int = 0
    batch_size: int = 32
    base_lr: float = 6.4e-4
    decay: str = "cosine"
    milestones: tuple[float, ...] = ()
    warmup_steps: int = 461
    warmup_lr: float = 8e-8
    weight_decay: float = 0.1
    layer_decay: float = 0.7
    drop_path: float = 0.1
    optimizer: str = "adamw"
    betas: tuple[float, ...] = (0.9, 0.999)
    image_size: int = 0  # 0: that of the task or model
    jitter: tuple[float, ...] = (0.1, 2.0)
    shorter: tuple[int, ...] = ()
    eval_shorter: int = 0
    hflip: float = 0.5
    score_threshold: float = 0.05
    per_image: int = 100  # detections
    repeat_below: float = 0.0
    width: int = 256  # of the feature pyramid network and the mask head
    box_width: int = 1024  # of the box head
    proposals: int = 1000
    sampled: int = 512  # proposals of an image that are learnt

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size must be at least 1")
        require(self.epochs >= 1 or self.steps >= 1, "epochs or steps must be at least 1")
        require(self.base_lr > 0.0, "base_lr must be above 0")
        require(0.0 < self.layer_decay <= 1.0, "layer_decay must be above 0 and at most 1")
        require(self.decay in DECAYS, f"decay must be one of {', '.join(DECAYS)}")
        require(all(0.0 < each < 1.0 for each in self.milestones), "milestones must be between 0 and 1")
        require(0.0 <= self.repeat_below < 1.0, "repeat_below must be at least 0 and below 1")
        require_bounds(self, "jitter")

    def images(self, counts: Mapping[str, int]) -> Workload:
        seen = self.steps * self.batch_size or self.epochs * (counts["train"] + counts["val"])
        if self.frozen:
            return Workload(forward=counts["test"] + seen)
        return Workload(forward=counts["test"], train=seen)

    def input_size(self) -> int:
        return self.image_size

    def fit(self, bench: "Workbench", train: "Split", val: "Split") -> Fitted:
        """Train on train and val together; raises BenchError if the set lacks masks that are scored."""
        import numpy as np

        from mixmim_bench import processes
        from mixmim_bench.data.images import join
        from mixmim_bench.data.joint import DetectionTrain
        from mixmim_bench.models.detector import Detector
        from mixmim_bench.protocols.contract import TRAIN_WORK
        from mixmim_bench.protocols.dense import cost_of, layerwise, note_rows, open_pyramid
        from mixmim_bench.protocols.detections import detect, rows_to_train
        from mixmim_bench.training import loop
        from mixmim_bench.training.contract import Schedule, scaled
        from mixmim_bench.training.objectives import Detecting

        whole = join([train.part, val.part])
        objects: Any = whole.targets
        has_masks = objects.segments is not None
        of_masks = [name for name in bench.run.task.metrics if name.startswith("ap_mask")]
        if of_masks and not has_masks:
            raise processes.InAll(f"the annotations have no masks, which {', '.join(of_masks)} need")
        rows = rows_to_train(objects, self.repeat_below, bench.num_classes, bench.seed)
        if not len(rows):
            raise processes.InAll(
                f"none of the {len(whole)} training images has an object that can be learnt"
            )
        drop_path = 0.0 if self.frozen else self.drop_path
        pyramid, notes = open_pyramid(bench, frozen=self.frozen, drop_path=drop_path, freeze_batch_norm=True)
        network = Detector(
            pyramid,
            bench.num_classes,
            masks=has_masks,
            score_threshold=self.score_threshold,
            per_image=self.per_image,
            width=self.width,
            box_width=self.box_width,
            proposals=self.proposals,
            sampled=self.sampled,
            seed=bench.seed,
        )
        part = whole.take(rows)
        batch_size = min(self.batch_size, len(part))
        steps = self.steps or self.epochs * (len(part) // batch_size)
        warmup_steps = min(self.warmup_steps, steps // 10)
        if warmup_steps < self.warmup_steps:
            notes.append(f"warm-up of {warmup_steps} instead of {self.warmup_steps} steps, of {steps} in all")
        trained = loop.train(
            network,
            part,
            DetectionTrain(
                bench.run.preprocessing,
                size=bench.run.size[0],
                jitter=self.jitter,
                shorter=self.shorter,
                hflip=0.0 if "hflip" in bench.run.task.forbid else self.hflip,
            ),
            Detecting(),
            Schedule(
                epochs=0 if self.steps else self.epochs,
                steps=self.steps,
                batch_size=batch_size,
                lr=scaled(self.base_lr, batch_size),
                decay=self.decay,
                milestones=self.milestones,
                warmup_steps=warmup_steps,
                warmup_lr=self.warmup_lr,
                optimizer=self.optimizer,
                betas=self.betas,
                weight_decay=self.weight_decay,
                layer_decay=self.layer_decay,
            ),
            bench.environment(train, val),
            f"training the detector{'' if self.frozen else ' and the backbone'}",
            work=(1.0 if self.frozen else TRAIN_WORK) * bench.gmacs,
            make_optimizer=layerwise,
        )
        note_rows(bench, [train, val], trained, rows, whole)
        bench.keep_weights(network)
        images_of_classes = objects.per_class(bench.num_classes)

        def predict(split: "Split") -> "Detections":
            return detect(bench, split, network, self.eval_shorter, images_of_classes)

        params, macs, doubts = cost_of(network.parts(bench.run.size))
        return Fitted(
            predict,
            arrays={"train_loss": np.array(trained.losses)},
            notes=(*notes, *doubts),
            head_params=params,
            head_macs=macs,
            train={"loss": trained.losses[-1], "n": min(len(np.unique(rows)), steps * batch_size)},
        )


PROTOCOL = FinetuneDetection
