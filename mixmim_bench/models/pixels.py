"""`pixels`: the image itself as features, the baseline that any backbone must beat."""

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

SIDE = 32  # pixels


class Pixels(nn.Module):
    """An image averaged to 32 x 32 pixels, as 3,072 features; only the classifier has parameters."""

    def __init__(self, num_classes: int = 1000, in_chans: int = 3) -> None:
        super().__init__()
        self.num_features = self.head_hidden_size = in_chans * SIDE * SIDE
        self.feature_info: list[dict[str, Any]] = []
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier; 0 for none."""
        self.num_classes = num_classes
        self.head: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def forward_features(self, x: Tensor) -> Tensor:
        """Average images (b, 3, H, W) to (b, 3, 32, 32)."""
        return adaptive_avg_pool2d(x, SIDE)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the features (b, 3072), or their classes (b, num_classes)."""
        x = torch.flatten(x, 1)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return classes of images, or features if there is no classifier."""
        return self.forward_head(self.forward_features(x))


default_cfgs = generate_default_cfgs(
    {
        "pixels": {
            "input_size": (3, SIDE, SIDE),
            "num_classes": 1000,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "classifier": "head",
        }
    }
)


@register_model
def pixels(pretrained: bool = False, **kwargs: Any) -> Pixels:
    """The image itself. Has no weights."""
    return build_model_with_cfg(Pixels, "pixels", pretrained, **kwargs)
