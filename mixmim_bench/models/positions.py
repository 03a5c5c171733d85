"""The frozen 2-D sin-cos position embedding, and its interpolation to another grid.

The release encodes the column of a token in the first half of its channels and the row in the second; the
models that OpenMMLab trained itself have it the other way round. Interpolation keeps either order.
"""

import torch.nn.functional as F
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import register_notrace_function
from torch import Tensor

Size = tuple[int, int]


def sincos_positions(grid: Size, dim: int) -> Tensor:
    """Compute the position embedding of MAE for a grid (H, W): (1, H * W, dim)."""
    table = build_sincos2d_pos_embed(list(grid), dim, reverse_coord=True, interleave_sin_cos=True)
    # timm walks the grid column by column when it reverses the coordinates
    return table.view(grid[1], grid[0], dim).transpose(0, 1).reshape(1, -1, dim)


@register_notrace_function  # reason: whether there is anything to do is decided at run time
def resize_positions(table: Tensor, old: Size, new: Size) -> Tensor:
    """Interpolate a position embedding (1, H * W, dim) from one grid to another, bicubic in float32.

    This is how the release starts 384-pixel fine-tuning from 224-pixel weights (Sense-X/MixMIM,
    util/pos_embed.py), so the distance between two positions stays what the network has learnt.
    """
    if old == new:
        return table
    grid = table.float().view(1, *old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
