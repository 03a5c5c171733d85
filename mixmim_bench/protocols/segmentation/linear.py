"""`linear` for segmentation: batch norm and a 1 x 1 convolution on frozen feature maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from mixmim_bench.hyperparameters import require
from mixmim_bench.protocols.contract import SCORED_MAPS, Fitted, Protocol, Workload
from mixmim_bench.protocols.segmentation import EVALUATIONS

if TYPE_CHECKING:
    import torch

    from mixmim_bench.data.dataset import Split
    from mixmim_bench.models.pyramid import Pyramid
    from mixmim_bench.models.segmenter import LinearSegmenter
    from mixmim_bench.protocols.workbench import Workbench
    from mixmim_bench.scoring.predictions import PixelCounts
    from mixmim_bench.training.contract import Trained

STAGES = {"last": (3,), "all": (0, 1, 2, 3)}


@dataclass(frozen=True, kw_only=True)
class LinearSegmentation(Protocol):
    """A linear classifier of pixels on the last map and on all four, of which the better on val is refit.

    Optimizer, learning rate, steps and batch are those of DINOv2's linear segmentation on ADE20K (arXiv
    2304.07193; dinov2_vitb14_ade20k_linear_config.py: AdamW, 1e-3 for 16 images, weight decay 1e-4, 40,000
    steps, 1,500 of warm-up, poly; windows of 512 pixels at a stride of 341 in evaluation). Images are not
    augmented: training sees the windows that cover each image, resized to the run's size (the shorter side).
    Their maps are computed once where they fit into memory, else in every step; they are rounded to float16
    in both cases. Of a plain network (ViT), the maps are those of four blocks at one stride.

    With several values of `base_lr`, each is trained for every choice of `stages`. `evaluation` is 'slide' or
    'whole'. On train, the loss is that of the last epoch, and the metrics are those of 200 images at most,
    scored as test is.
    """

    name: ClassVar[str] = "linear"
    title: ClassVar[str] = "linear probe"
    kind: ClassVar[str] = "segmentation"
    version: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    dense: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "quick": {"steps": 4_000, "warmup_steps": 150},
    }

    stages: tuple[str, ...] = ("last", "all")
    steps: int = 40_000
    batch_size: int = 16
    base_lr: tuple[float, ...] = (1.6e-2,)
    warmup_steps: int = 1_500
    warmup_lr: float = 1e-9
    weight_decay: float = 1e-4
    optimizer: str = "adamw"
    betas: tuple[float, ...] = (0.9, 0.999)
    image_size: int = 0  # 0: that of the task or model
    evaluation: str = "slide"
    stride: int = 0  # of sliding windows; 0: 2/3 of the image size

    def __post_init__(self) -> None:
        require(
            bool(self.stages) and set(self.stages) <= set(STAGES), f"stages must be of {', '.join(STAGES)}"
        )
        require(self.steps >= 1 and self.batch_size >= 2, "steps must be at least 1, and batch_size 2")
        require(self.warmup_steps < self.steps, "warmup_steps must be below steps")
        require(bool(self.base_lr) and min(self.base_lr) > 0.0, "base_lr must be above 0")
        require(self.evaluation in EVALUATIONS, f"evaluation must be one of {', '.join(EVALUATIONS)}")

    def images(self, counts: Mapping[str, int]) -> Workload:
        scored = min(SCORED_MAPS, counts["train"] + counts["val"])
        return Workload(forward=sum(counts.values()) + scored)

    def input_size(self) -> int:
        return self.image_size

    def fit(self, bench: "Workbench", train: "Split", val: "Split") -> Fitted:
        """Train all heads on train, select one on val, train it on both."""
        import numpy as np

        from mixmim_bench import processes
        from mixmim_bench.data.images import join
        from mixmim_bench.protocols.dense import cost_of, open_pyramid
        from mixmim_bench.protocols.label_maps import evaluation_of, predict_maps, score_on_train
        from mixmim_bench.scoring.metrics import value_of_items

        pyramid, notes = open_pyramid(bench, frozen=True)
        pyramid = pyramid.to(bench.machine.device)
        evaluation = evaluation_of(pyramid, self.evaluation, notes)
        heads = [(name, base_lr) for name in self.stages for base_lr in self.base_lr]
        arrays: dict[str, Any] = {}
        chosen: dict[str, Any] = {}
        stride = self.stride or round(bench.run.size[0] * 2 / 3)
        if len(heads) > 1:
            network, _ = self._train(bench, pyramid, [train], heads, "training all heads")
            networks = [partial(network.eval().of_head, place) for place in range(len(heads))]
            predicted = predict_maps(bench, val, networks, evaluation, stride)
            scores = [value_of_items(bench.metric, counts.items) for counts in predicted]
            arrays = {
                "stages": np.array([name for name, _ in heads]),
                "base_lr": np.array([base_lr for _, base_lr in heads]),
                f"val_{bench.metric}": np.array(scores),
            }
            chosen[f"val_{bench.metric}"] = max(scores)
            # of the main process: those of others may differ by rounding
            heads = [heads[processes.broadcast(int(np.argmax(scores)))]]
        network, trained = self._train(bench, pyramid, [train, val], heads, "training the head")
        final = partial(network.eval().of_head, 0)
        part = join([train.part, val.part])
        on_train = score_on_train(bench, part, SCORED_MAPS, final, evaluation, stride)

        def predict(split: "Split") -> "PixelCounts":
            (counts,) = predict_maps(bench, split, [final], evaluation, stride)
            return counts

        shapes = [(1, *shape) for shape in pyramid.shapes(bench.run.size)]
        params, macs, doubts = cost_of([(network.heads, [shapes], 1)])
        return Fitted(
            predict,
            chosen={**chosen, "stages": heads[0][0], "base_lr": heads[0][1]},
            arrays={**arrays, "train_loss": np.array(trained.losses)},
            notes=(*notes, *doubts),
            head_params=params,
            head_macs=macs,
            train={**on_train, "loss": trained.losses[-1]},
        )

    def _train(
        self,
        bench: "Workbench",
        pyramid: "Pyramid",
        splits: "Sequence[Split]",
        heads: Sequence[tuple[str, float]],
        name: str,
    ) -> "tuple[LinearSegmenter, Trained]":
        from timm.optim import create_optimizer_v2

        from mixmim_bench.data.images import join
        from mixmim_bench.data.masks import IGNORED
        from mixmim_bench.data.windows import PaddedWindow, Windows
        from mixmim_bench.features.maps import fits, store_maps, unchanged
        from mixmim_bench.models.segmenter import LinearMaps, LinearSegmenter
        from mixmim_bench.protocols.dense import note_rows
        from mixmim_bench.training import loop
        from mixmim_bench.training.contract import Schedule, scaled
        from mixmim_bench.training.objectives import SegmentingByHeads

        run, size = bench.run, bench.run.size[0]
        part = join([split.part for split in splits])
        windows = Windows(part, run.preprocessing, size, size)
        network = LinearSegmenter(
            pyramid,
            LinearMaps(
                pyramid.widths, [STAGES[stages] for stages, _ in heads], bench.num_classes, bench.seed
            ),
            run.size,
        ).to(bench.machine.device)
        environment = bench.environment(*splits)
        images: Any = windows.as_part()
        transform: Any = PaddedWindow(run.preprocessing, size)
        if fits(len(windows), network.stored_width, size):
            with bench.stages.stage("feature maps", len(windows), bench.gmacs) as advance:
                images = store_maps(
                    images,
                    transform,
                    network.stored,
                    (network.stored_width, size),
                    bench.machine,
                    run.task.skip_unreadable,
                    advance,
                )
            transform = unchanged
            environment = replace(environment, machine=replace(environment.machine, workers=0))
        batch_size = min(self.batch_size, len(windows))
        rates = [scaled(base_lr, batch_size) for _, base_lr in heads]

        def optimizer(network: Any, schedule: Schedule) -> "torch.optim.Optimizer":
            groups = [
                {"params": list(head.parameters()), "lr": rate}
                for head, rate in zip(network.heads.heads, rates, strict=True)
            ]
            return create_optimizer_v2(
                groups,
                opt=schedule.optimizer,
                lr=schedule.lr,
                weight_decay=schedule.weight_decay,
                betas=schedule.betas,
            )

        trained = loop.train(
            network,
            images,
            transform,
            SegmentingByHeads(IGNORED, 0.0),
            Schedule(
                steps=self.steps,
                batch_size=batch_size,
                lr=max(rates),
                decay="poly",
                warmup_steps=self.warmup_steps,
                warmup_lr=self.warmup_lr,
                optimizer=self.optimizer,
                betas=self.betas,
                weight_decay=self.weight_decay,
            ),
            environment,
            name,
            work=0.0 if transform is unchanged else bench.gmacs,
            make_optimizer=optimizer,
            whole=True,
        )
        note_rows(bench, splits, trained, windows.images, part)
        return network, trained


PROTOCOL = LinearSegmentation
