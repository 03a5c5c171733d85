"""The frozen 2-D sin-cos position embedding, and what becomes of it on another grid.

The release encodes the column of a token in the first half of its channels and the row in the second; the
models that OpenMMLab trained itself have it the other way round. A table says which by its numbers.
"""

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import Tensor

Size = tuple[int, int]


def sincos_positions(grid: Size, dim: int, rows_first: bool = False) -> Tensor:
    """Compute the position embedding of MAE for a grid (H, W): (1, H * W, dim)."""
    if rows_first:
        turned = sincos_positions((grid[1], grid[0]), dim)
        return turned.view(grid[1], grid[0], dim).transpose(0, 1).reshape(1, -1, dim)
    table = build_sincos2d_pos_embed(list(grid), dim, reverse_coord=True, interleave_sin_cos=True)
    # timm walks the grid column by column when it reverses the coordinates
    return table.view(grid[1], grid[0], dim).transpose(0, 1).reshape(1, -1, dim)


def resize_positions(table: Tensor, old: Size, new: Size) -> Tensor:
    """Bring an embedding (1, H * W, dim) from one grid to another.

    A sin-cos table is computed anew, in its own order and in float32; any other one is interpolated, bicubic.
    """
    if old == new:
        return table
    dim = table.shape[-1]
    if table.is_meta:
        return table.new_empty(1, new[0] * new[1], dim)
    for rows_first in (False, True):
        computed = sincos_positions(old, dim, rows_first).to(table.device)
        if torch.allclose(table.float(), computed, atol=1e-2):  # half-precision checkpoints round
            return sincos_positions(new, dim, rows_first).to(table.device)
    grid = table.float().view(1, *old, dim).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).reshape(1, -1, dim).to(table.dtype)
