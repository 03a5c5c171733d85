"""`finetune` for classification: train all weights of the backbone with a new head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mixmim_bench.hyperparameters import require, require_bounds
from mixmim_bench.protocols.contract import TRAIN_WORK, Fitted, Protocol, Workload, later, scored_again

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from mixmim_bench.data.dataset import Split
    from mixmim_bench.data.transforms import JointTransform
    from mixmim_bench.protocols.workbench import Workbench
    from mixmim_bench.scoring.predictions import ClassScores
    from mixmim_bench.training.contract import Objective, Schedule, Trained

CHECKED = 200  # training images that are scored at least, to see that something was learnt
LAYER_IDS = ("timm", "release", "openmmlab")
HEAD_INITS = ("random", "linear")
SHORT = 2500  # steps, as the shorter schedule of VTAB's lightweight sweep (arXiv 1910.04867)


@dataclass(frozen=True, kw_only=True)
class Finetune(Protocol):
    """MixMIM-B's fine-tuning on ImageNet-1K (Sense-X/MixMIM, exp/base_600ep/finetune.sh).

    Nothing is selected, so train and val are trained on together, as in the papers. The learning rate is
    base_lr * batch_size / 256; batch_size is that of all devices and gradient accumulation together.

    Presets:

    - `random`, for random weights: plain AdamW without the regularisation of a long fine-tuning.
    - `small`, for pretrained weights on sets so small that the paper's recipe would have fewer than 2,500
      steps: a linear probe, then fine-tuning from its head (arXiv 2202.10054), with a learning rate and a
      number of epochs that are chosen on val (a grid as in VTAB's lightweight sweep, arXiv 1910.04867) and
      no mixup (as in BiT below 20,000 images, arXiv 1912.11370); then train and val are refit. Drop path and
      smoothing would raise the loss of the head so much that the first steps undo it.
    - `at384`, for weights fine-tuned at 224 pixels, such as in mixmim-b-384: Swin's recipe from 224 to 384
      (microsoft/Swin-Transformer, swin_base_patch4_window12_384_22kto1k_finetune.yaml; its base_lr of 2e-5
      is per 512 images). The release has no script for its 384-pixel checkpoints.

    `layer_ids`, of MixMIM: in the release the classifier has the learning rate of the last block, one factor
    of layer_decay below the full rate, and a patch merging that of the block after it; in OpenMMLab the
    classifier has the full rate, and a patch merging that of the block before it. The paper's preset follows
    the release; 'timm' gives the classifier the full rate, as other models have it. `head_epochs` train the
    head alone before all is trained. With `base_lr_grid` or `epochs_grid`, each pair is trained on train and
    the best on val is trained on both.

    On train, the loss is that of the last epoch, and the metrics are those of images that are not augmented:
    10,000 at most, and no more than add a tenth to the work of training (200, if that is more).
    """

    name: ClassVar[str] = "finetune"
    title: ClassVar[str] = "fine-tuning"
    kind: ClassVar[str] = "classification"
    version: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    learnt: ClassVar[str] = "top1"  # what is measured on some images of train
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"layer_ids": "release"},
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
        "small": {
            "batch_size": 64,
            "base_lr_grid": (4e-4, 1.6e-3, 6.4e-3),
            "epochs_grid": (15, 50),
            "warmup_epochs": 2.0,
            "head_init": "linear",
            "layer_decay": 0.75,
            "layer_ids": "release",
            "clip_grad": 1.0,
            "drop_path": 0.0,
            "smoothing": 0.0,
            "mixup": 0.0,
            "cutmix": 0.0,
            "auto_augment": "",
            "reprob": 0.0,
            "crop_scale": (0.4, 1.0),
        },
        "at384": {
            "epochs": 30,
            "base_lr": 1e-5,
            "min_lr": 2e-7,
            "warmup_lr": 2e-8,
            "weight_decay": 1e-8,
            "layer_decay": 1.0,
            "drop_path": 0.2,
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
    optimizer: str = later("adamw")  # of timm
    betas: tuple[float, ...] = later((0.9, 0.999))
    warmup_lr: float = later(0.0)
    ema_decay: float = later(0.0)  # 0: the last weights are the result, not averaged ones
    layer_ids: str = later("timm")
    color_jitter: float = later(0.0)  # without auto_augment only, as in timm
    remode: str = later("pixel")  # of random erasing
    mixup_prob: float = later(1.0)
    mixup_switch_prob: float = later(0.5)  # of cutmix instead of mixup
    mixup_mode: str = later("batch")
    head_init: str = later("random")  # 'linear': the coefficients of the linear probe
    head_epochs: int = later(0)
    base_lr_grid: tuple[float, ...] = later(())  # (): base_lr
    epochs_grid: tuple[int, ...] = later(())  # (): epochs

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size must be at least 1")
        require(all(type(each) is int and each >= 1 for each in self._epochs), "epochs must be at least 1")
        require(all(each > 0.0 for each in self._base_lrs), "base_lr must be above 0")
        for name in ("head_init_std", "layer_decay"):
            require(getattr(self, name) > 0.0, f"{name} must be above 0")
        require(self.layer_decay <= 1.0, "layer_decay must be at most 1")
        for name in (
            "min_lr", "warmup_lr", "warmup_epochs", "weight_decay", "clip_grad", "mixup", "cutmix",
            "color_jitter", "image_size", "head_epochs",
        ):  # fmt: skip
            require(getattr(self, name) >= 0, f"{name} must be at least 0")
        for name in ("drop_path", "smoothing", "reprob", "hflip", "mixup_prob", "mixup_switch_prob"):
            require(0.0 <= getattr(self, name) <= 1.0, f"{name} must be from 0 to 1")
        require(0.0 <= self.ema_decay < 1.0, "ema_decay must be at least 0 and below 1")
        for name, allowed in (
            ("layer_ids", LAYER_IDS),
            ("head_init", HEAD_INITS),
            ("remode", ("pixel", "rand", "const")),
            ("mixup_mode", ("batch", "pair", "elem")),
        ):
            require(getattr(self, name) in allowed, f"{name} must be one of {', '.join(allowed)}")
        require_bounds(self, "crop_scale", "crop_ratio")
        require(
            self.warmup_epochs < min(self._epochs),
            f"warmup_epochs is {self.warmup_epochs} and must be below epochs, which is {min(self._epochs)}",
        )

    @property
    def _epochs(self) -> tuple[int, ...]:
        return self.epochs_grid or (self.epochs,)

    @property
    def _base_lrs(self) -> tuple[float, ...]:
        return self.base_lr_grid or (self.base_lr,)

    @property
    def _choices(self) -> list[tuple[float, int]]:
        return [(base_lr, epochs) for base_lr in self._base_lrs for epochs in self._epochs]

    def input_size(self) -> int:
        return self.image_size

    @classmethod
    def auto_preset(cls, recipe: Mapping[str, Any], counts: Mapping[str, int]) -> str:
        """Return 'small' where the paper's recipe, as changed by the task, has too few steps."""
        epochs, batch = (recipe.get(name, getattr(cls, name)) for name in ("epochs", "batch_size"))
        images = counts.get("train", 0) + counts.get("val", 0)
        return "small" if images and epochs * max(images // batch, 1) < SHORT else "paper"

    def images(self, counts: Mapping[str, int]) -> Workload:
        seen = (counts["train"] + counts["val"]) * max(self._epochs)  # at most
        forward = counts["test"] + _scored(counts["train"] + counts["val"], max(self._epochs))
        if len(self._choices) > 1:
            seen += counts["train"] * len(self._base_lrs) * sum(self._epochs)
            forward += counts["val"] * len(self._choices)
        if self.head_init == "linear":
            forward += counts["train"] + counts["val"]
        return Workload(forward=forward, train=seen)

    # -- what multilabel tasks change ------------------------------------------------------------------

    def _objective(self, bench: "Workbench") -> "Objective":
        from mixmim_bench.training.objectives import Classifying

        return Classifying(bench.num_classes, self._mixup(bench.num_classes, self.smoothing), self.smoothing)

    def _probe(self) -> Protocol:
        """Return the linear probe whose coefficients initialise the head."""
        from mixmim_bench.protocols.classification.linear import Linear

        return Linear()

    def _check(self, y: "np.ndarray", logits: "np.ndarray", labels: "np.ndarray") -> tuple[float, str]:
        """Return the accuracy on images of train, and a note if it is at chance."""
        import numpy as np

        from mixmim_bench.scoring.statistics import mcnemar_mid_p

        right = logits.argmax(1) == y
        majority = y == np.bincount(labels).argmax()
        p = mcnemar_mid_p(int((right & ~majority).sum()), int((majority & ~right).sum()))
        half_of_errors = right.mean() >= (1 + majority.mean()) / 2  # as where nearly all are of one class
        if half_of_errors or (right.mean() > majority.mean() and p < 0.05):
            return float(right.mean()), ""
        return float(right.mean()), (
            f"train accuracy, {100 * right.mean():.1f} % of {len(right)} images, is not significantly above "
            f"that of the most frequent class, {100 * majority.mean():.1f} %: too few steps, or an "
            "unsuitable recipe"
        )

    # -- fitting ---------------------------------------------------------------------------------------

    def fit(self, bench: "Workbench", train: "Split", val: "Split") -> Fitted:
        """Choose on val if there are several recipes; train on train and val; the scores are logits."""
        import numpy as np

        from mixmim_bench.data.images import join
        from mixmim_bench.protocols.on_train import of_scores, sample
        from mixmim_bench.protocols.tuning import classifier, logits_of

        heads = self._probe().fit(bench, train, val).heads if self.head_init == "linear" else {}
        (base_lr, epochs), chosen, arrays = self._choose(bench, train, val, heads.get("train"))
        network, trained, notes = self._train(
            bench, [train, val], base_lr, epochs, heads.get("both"), "fine-tuning"
        )
        bench.note_training([train, val], trained)
        bench.keep_weights(network)
        part = join([train.part, val.part])
        scored = sample(part, _scored(len(part), epochs))
        known = logits_of(network, scored, bench, "checking what was learnt")
        accuracy, note = self._check(known.y, known.x, part.labels)
        on_train = of_scores(bench.metrics, [(known.y, known.x)], likelihood=False)

        def predict(split: "Split") -> "ClassScores":
            return score(network, split, bench)

        head = list(classifier(network).parameters())
        return Fitted(
            predict,
            chosen=chosen,
            arrays={
                **arrays,
                "train_loss": np.array(trained.losses),
                f"train_{self.learnt}": np.array(accuracy),
            },
            notes=(*notes, *filter(None, [note])),
            head_params=sum(parameter.numel() for parameter in head),
            head_macs=sum(parameter.numel() for parameter in head if parameter.ndim > 1),
            train={**on_train, "loss": trained.losses[-1]},
        )

    def _choose(
        self, bench: "Workbench", train: "Split", val: "Split", head: Any
    ) -> tuple[tuple[float, int], dict[str, Any], dict[str, Any]]:
        """Train each pair of learning rate and epochs on train, and return the best on val."""
        import numpy as np

        from mixmim_bench.protocols.tuning import logits_of
        from mixmim_bench.scoring.metrics import value
        from mixmim_bench.training.trainer import Diverged

        if len(self._choices) == 1:
            return self._choices[0], {}, {}
        scores: list[float] = []
        diverged: Diverged | None = None
        for place, (base_lr, epochs) in enumerate(self._choices, 1):
            name = f"trying {place} of {len(self._choices)}"
            try:
                network, _, _ = self._train(bench, [train], base_lr, epochs, head, name)
            except Diverged as error:
                diverged = error
                scores.append(-np.inf)
                continue
            of_val = logits_of(network, val.part, bench, "scoring val")
            scores.append(value(bench.metric, of_val.y, of_val.x))
        if max(scores) == -np.inf:
            assert diverged is not None
            raise diverged
        best = self._choices[int(np.argmax(scores))]
        chosen = {"base_lr": best[0], "epochs": best[1], f"val_{bench.metric}": max(scores)}
        arrays = {
            "base_lr": np.array([base_lr for base_lr, _ in self._choices]),
            "epochs": np.array([epochs for _, epochs in self._choices]),
            f"val_{bench.metric}": np.array(scores),
        }
        return best, chosen, arrays

    def _train(
        self,
        bench: "Workbench",
        splits: "Sequence[Split]",
        base_lr: float,
        epochs: int,
        head: Any,
        name: str,
    ) -> "tuple[nn.Module, Trained, tuple[str, ...]]":
        """Train a new copy of the backbone; head: weights and bias to start from, if any."""
        from mixmim_bench.data.images import join
        from mixmim_bench.protocols.tuning import build_network, set_head, train_head
        from mixmim_bench.training import loop

        network, notes = build_network(bench, self)
        if head is not None:
            set_head(network, *head)
        part = join([split.part for split in splits])
        environment = bench.environment(*splits, quiet=len(splits) == 1)  # learning rates are printed once
        transform = self._transform(bench)
        objective = self._objective(bench)
        schedule = self._schedule(len(part), network, base_lr, epochs)
        if self.head_epochs:
            of_head, work = f"{name}: the head", (TRAIN_WORK - 2.0) * bench.gmacs
            train_head(
                network,
                self.head_epochs,
                schedule,
                lambda heads: loop.train(
                    network, part, transform, objective, heads, environment, of_head, work
                ),
            )
        work = TRAIN_WORK * bench.gmacs
        trained = loop.train(network, part, transform, objective, schedule, environment, name, work)
        return network, trained, notes

    def _mixup(self, num_classes: int, smoothing: float) -> Any:
        """Return timm's mixup and cutmix, None if the recipe has neither."""
        from timm.data import Mixup

        if not self.mixup and not self.cutmix:
            return None
        return Mixup(
            mixup_alpha=self.mixup,
            cutmix_alpha=self.cutmix,
            prob=self.mixup_prob,
            switch_prob=self.mixup_switch_prob,
            mode=self.mixup_mode,
            label_smoothing=smoothing,
            num_classes=num_classes,
        )

    def _transform(self, bench: "Workbench") -> "JointTransform":
        from mixmim_bench.data.transforms import ImageOnly, train_transform

        return ImageOnly(
            train_transform(
                bench.run.preprocessing,
                crop_scale=self.crop_scale,
                crop_ratio=self.crop_ratio,
                hflip=0.0 if "hflip" in bench.run.task.forbid else self.hflip,
                auto_augment=self.auto_augment,
                color_jitter=self.color_jitter,
                reprob=self.reprob,
                remode=self.remode,
            )
        )

    def _schedule(self, images: int, network: Any, base_lr: float = 0.0, epochs: int = 0) -> "Schedule":
        from mixmim_bench.training.contract import Schedule, scaled

        batch_size = min(self.batch_size, images)
        of_release = self.layer_ids == "release" and hasattr(network, "layer_ids")
        return Schedule(
            epochs=epochs or self.epochs,
            batch_size=batch_size,
            lr=scaled(base_lr or self.base_lr, batch_size),
            min_lr=self.min_lr,
            warmup_epochs=self.warmup_epochs,
            warmup_lr=self.warmup_lr,
            optimizer=self.optimizer,
            betas=self.betas if "adam" in self.optimizer or "lamb" in self.optimizer else (),
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            head_lr_scale=self.layer_decay if of_release else 1.0,
            clip_grad=self.clip_grad,
            ema_decay=self.ema_decay,
        )


def _scored(images: int, epochs: int) -> int:
    """Return how many of the training images are scored after a training of so many epochs."""
    return max(min(CHECKED, images), scored_again(images, TRAIN_WORK * epochs * images))


def score(network: "nn.Module", split: "Split", bench: "Workbench") -> "ClassScores":
    """Score the classes of a split with a trained network; the scores are logits."""
    from mixmim_bench.protocols.tuning import logits_of
    from mixmim_bench.scoring.predictions import ClassScores

    logits = logits_of(network, split.part, bench, f"scoring {split.role}")
    bench.skipped[split.role] = logits.unreadable
    bench.note_digests(split, logits.rows, logits.digests)
    return ClassScores(logits.ids, logits.y, logits.x)


PROTOCOL = Finetune
