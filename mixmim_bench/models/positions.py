"""The frozen 2-D sin-cos position embedding, and its interpolation to another grid.

The release encodes the column of a token in the first half of its channels and the row in the second; models
trained by OpenMMLab use the opposite order. Interpolation preserves either.
"""

import torch.nn.functional as F
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import register_notrace_function
from torch import Tensor

Size = tuple[int, int]


def sincos_positions(grid: Size, dim: int) -> Tensor:
    """Compute MAE's position embedding (1, H * W, dim) for a grid (H, W)."""
    table = build_sincos2d_pos_embed(list(grid), dim, reverse_coord=True, interleave_sin_cos=True)
    # with reversed coordinates timm orders the grid column by column
    return table.view(grid[1], grid[0], dim).transpose(0, 1).reshape(1, -1, dim)


@register_notrace_function  # whether to resize depends on the input
def resize_positions(table: Tensor, old: Size, new: Size) -> Tensor:
    """Interpolate a position embedding (1, H * W, dim) from one grid to another, bicubic in float32.

    The release initialises 384-pixel fine-tuning from 224-pixel weights in this way (Sense-X/MixMIM,
    util/pos_embed.py), which preserves the distances between positions that the network has learned.
    """
    if old == new:
        return table
    grid = table.float().view(1, *old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
