"""Window attention with Swin's relative position bias, and the transformer block around it."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_, use_fused_attn
from timm.models import register_notrace_function
from timm.models.swin_transformer import get_relative_position_index
from torch import Tensor, fx, nn


def resize_bias_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Interpolate a relative position bias table to another window size, bicubic as in the release.

    Windows are (h, w) in tokens; a table is ((2h - 1) * (2w - 1), heads).
    """
    grid = table.float().T.reshape(1, -1, 2 * old[0] - 1, 2 * old[1] - 1)
    size = (2 * new[0] - 1, 2 * new[1] - 1)
    resized = F.interpolate(grid, size=size, mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T.to(table.dtype).contiguous()


@register_notrace_function  # whether there is a mask depends on the input
def add_mask(bias: Tensor, mask: Tensor | None) -> Tensor:
    """Add an optional mask (windows, 1, N, N) to a bias (heads, N, N): (windows, heads, N, N)."""
    return bias if mask is None else bias + mask.to(bias.dtype)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows of `window_size` (h, w), N = h * w tokens each.

    The position bias is gathered from a small learned table. With gradients disabled it is cached
    (`_kept_bias`) and checked against the table before each use.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: tuple[int, int],
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.fused_attn = use_fused_attn()
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

        self.window_size = window_size
        self.relative_position_bias_table = nn.Parameter(
            torch.empty(self._table_rows(window_size), num_heads, **factory)
        )
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self._index_windows()

    @staticmethod
    def _table_rows(window_size: tuple[int, int]) -> int:
        return (2 * window_size[0] - 1) * (2 * window_size[1] - 1)

    def _index_windows(self) -> None:
        index = get_relative_position_index(
            *self.window_size, device=self.relative_position_bias_table.device
        )
        self.register_buffer("relative_position_index", index, persistent=False)
        self._drop_kept_bias()

    def init_non_persistent_buffers(self) -> None:
        """Recompute the index, for timm's loaders that build on the meta device."""
        self._index_windows()

    @torch.no_grad()
    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Change the window size and interpolate the bias table to it."""
        if window_size == self.window_size:
            return
        old = self.relative_position_bias_table
        table = resize_bias_table(old, self.window_size, window_size)
        self.window_size = window_size
        self.relative_position_bias_table = nn.Parameter(table, requires_grad=old.requires_grad)
        self._index_windows()

    # -- the gathered bias, cached only while gradients are disabled -------------------------------

    def _drop_kept_bias(self) -> None:
        self._kept_bias: tuple[Tensor, int, Tensor] | None = None

    def train(self, mode: bool = True) -> "WindowAttention":
        self._drop_kept_bias()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> "WindowAttention":
        self._drop_kept_bias()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._drop_kept_bias()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the cached bias from copies and pickles."""
        return {**self.__dict__, "_kept_bias": None}

    def _gather_bias(self) -> Tensor:
        """Look up the bias of every pair of tokens in the table: (heads, N, N)."""
        tokens = self.window_size[0] * self.window_size[1]
        # the backward pass of index_select is faster than that of indexing
        by_head = self.relative_position_bias_table.t().contiguous()
        bias = by_head.index_select(1, self.relative_position_index.view(-1))
        return bias.view(self.num_heads, tokens, tokens)

    def position_bias(self, x: Tensor) -> Tensor:
        """Return the position bias (heads, N, N) for tokens x, gathered once while gradients are disabled."""
        dtype = x.dtype
        traced = isinstance(x, fx.Proxy) or torch.jit.is_tracing() or torch.compiler.is_compiling()
        if traced or torch.is_grad_enabled():
            return self._gather_bias().to(dtype)
        table = self.relative_position_bias_table
        if self._kept_bias is not None:
            snapshot, version, bias = self._kept_bias
            # writes through `.data` do not change the version, so the values are compared too; on the CPU
            # only, where this needs no synchronisation
            if (
                bias.dtype == dtype
                and version == _version(table)
                and (not table.is_cpu or torch.equal(snapshot, table))
            ):
                return bias
        with torch.inference_mode(False), torch.no_grad():  # also usable outside inference mode
            bias = self._gather_bias().to(dtype)
            self._kept_bias = (table.detach().clone(), _version(table), bias)
        return bias

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend within each window.

        Args:
            x: tokens (B, windows, N, C).
            mask: (windows, 1, N, N), 0 where a query may attend to a key, else -inf.

        Returns:
            Tokens (B, windows, N, C).
        """
        B, windows, N, C = x.shape
        qkv = self.qkv(x).reshape(B, windows, N, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)  # each (B, windows, heads, N, head_dim)
        bias = add_mask(self.position_bias(q), mask)
        x = self._attend_fused(q, k, v, bias) if self._is_fused(x) else self._attend(q, k, v, bias)
        x = x.transpose(2, 3).reshape(B, windows, N, C)
        return self.proj_drop(self.proj(x))

    def _is_fused(self, x: Tensor) -> bool:
        """Whether to call torch's fused kernels.

        On a CPU they have no backward pass for a bias, and torch's fallback is slower than attention written
        out (by benchmarks/training.py). For torch.fx it is written out so that `AttentionExtract` finds its
        softmax.
        """
        if not self.fused_attn or isinstance(x, fx.Proxy):
            return False
        learns = torch.is_grad_enabled() and self.relative_position_bias_table.requires_grad
        return not (learns and x.device.type == "cpu")

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        attention = (q * self.scale) @ k.transpose(-2, -1) + bias
        return self.attn_drop(attention.softmax(dim=-1)) @ v

    def _attend_fused(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Call torch's fused kernels, which expect four dimensions.

        Windows that share one bias are merged into the batch axis, without a copy; windows with separate
        masks are merged into the head axis, so that one bias serves the whole batch.
        """
        merged = (0, 1) if bias.ndim == 3 else (1, 2)
        out = F.scaled_dot_product_attention(
            q.flatten(*merged),
            k.flatten(*merged),
            v.flatten(*merged),
            attn_mask=bias.flatten(0, -3).unsqueeze(0),
            dropout_p=self.attn_drop.p if self.training else 0.0,
        )
        return out.reshape(q.shape)


def _version(table: Tensor) -> int:
    """Return the version of a tensor; -1 for inference tensors, which do not track it."""
    return -1 if table.is_inference() else table._version


class Block(nn.Module):
    """A pre-norm transformer block on window-partitioned tokens."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: tuple[int, int],
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        norm_layer: type[nn.Module] = nn.LayerNorm,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.norm1 = norm_layer(dim, **factory)
        self.attn = WindowAttention(dim, num_heads, window_size, qkv_bias, attn_drop, proj_drop, **factory)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm_layer(dim, **factory)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **factory)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map tokens (B, windows, N, C) to the same shape; stochastic depth drops whole images."""
        x = x + self.drop_path(self.attn(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))
