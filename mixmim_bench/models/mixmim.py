"""MixMIM, the hierarchical vision transformer of arXiv 2205.13137 (also known as MixMAE).

A Swin-like encoder without shifted windows: every stage attends within large fixed windows, and frozen 2-D
sin-cos position embeddings are added to the patch tokens. An independent implementation that follows timm's
conventions; parameter names are those of the released fine-tuned checkpoints.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    PatchEmbed,
    SelectAdaptivePool2d,
    calculate_drop_path_rates,
    get_device_dtype,
    to_2tuple,
)
from timm.models import (
    build_model_with_cfg,
    checkpoint,
    generate_default_cfgs,
    register_model,
    register_notrace_function,
)
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from timm.models.swin_transformer import (
    calc_stage_window_sizes,
    resolve_stage_window_sizes,
    resolve_window_args,
    window_partition,
    window_reverse,
)
from torch import Tensor, nn

from mixmim_bench.models.attention import Block
from mixmim_bench.models.positions import Size, resize_positions, sincos_positions

REF_WINDOWS = (14, 14, 14, 7)  # of MixMIM-B, L and H, on the patch grid of 224 pixels
REF_GRID = (56, 56)
REF_PATCH = 4  # pixels, in which reference sizes are stated
TINY_SIZE = 32  # pixels of mixmim_tiny
PADDING = -1  # the source index of padding tokens


@register_notrace_function  # whether to pad depends on the input
def pad_grid(x: Tensor, multiple: Size) -> Tensor:
    """Zero-pad tokens (B, H, W, C) at the bottom and right to multiples of (h, w)."""
    rows, columns = -x.shape[1] % multiple[0], -x.shape[2] % multiple[1]
    return F.pad(x, (0, 0, 0, columns, 0, rows)) if rows or columns else x


@register_notrace_function  # whether a mask is needed depends on the input
def attention_mask(x: Tensor, source: Tensor | None, window_size: Size) -> Tensor | None:
    """Build the mask that restricts attention to tokens of the same source.

    Args:
        x: tokens (B, H, W, C) before padding.
        source: the image each cell came from, (1, H, W); padding counts as another source.
        window_size: (h, w).

    Returns:
        The mask (windows, 1, N, N), None if all tokens of a window may attend to each other.
    """
    _, height, width, _ = x.shape
    rows, columns = -height % window_size[0], -width % window_size[1]
    if source is None:
        if not rows and not columns:
            return None
        source = torch.zeros(1, height, width, device=x.device)
    source = F.pad(source, (0, columns, 0, rows), value=PADDING).unsqueeze(-1)
    source = window_partition(source, window_size).flatten(1)  # (windows, N)
    separate = source.unsqueeze(1) != source.unsqueeze(2)
    mask = torch.zeros(separate.shape, device=x.device)
    return mask.masked_fill(separate, float("-inf")).unsqueeze(1)


class PatchMerging(nn.Module):
    """Merge 2 x 2 neighbours into one token twice as wide: (B, H, W, C) -> (B, H/2, W/2, 2C).

    The four neighbours are concatenated in the order of Swin's first release (column by column), as in
    the released MixMIM weights; odd grids are zero-padded.
    """

    def __init__(self, dim: int, norm_layer: type[nn.Module], device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.norm = norm_layer(4 * dim, device=device, dtype=dtype)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_grid(x, (2, 2))
        neighbours = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(neighbours, dim=-1)))


class Stage(nn.Module):
    """Blocks on one grid, followed by the patch merging for the next stage.

    Windows never shift, so the tokens are partitioned once per stage. `forward` returns the tokens before
    `downsample`, which are the stage's features.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: Size,
        window_size: Size,
        always_partition: bool,
        drop_path: Sequence[float],
        downsample: bool,
        norm_layer: type[nn.Module],
        device: Any = None,
        dtype: Any = None,
        **block_args: Any,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.always_partition = always_partition
        self.window_size = self.fit_window(window_size, grid_size)
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList(
            Block(
                dim,
                num_heads,
                self.window_size,
                drop_path=rate,
                norm_layer=norm_layer,
                **block_args,
                **factory,
            )
            for rate in drop_path
        )
        self.downsample: nn.Module = PatchMerging(dim, norm_layer, **factory) if downsample else nn.Identity()

    def fit_window(self, window_size: Size, grid_size: Size) -> Size:
        """Clip a window to the grid, unless `always_partition`."""
        if self.always_partition:
            return window_size
        return min(window_size[0], grid_size[0]), min(window_size[1], grid_size[1])

    def set_input_size(self, grid_size: Size, window_size: Size, always_partition: bool | None) -> None:
        """Change the grid and window size, interpolating the bias tables."""
        if always_partition is not None:
            self.always_partition = always_partition
        self.window_size = self.fit_window(window_size, grid_size)
        for block in self.blocks:
            cast(Block, block).attn.set_window_size(self.window_size)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """Map tokens (B, H, W, C) to the same shape.

        For mixed inputs, `source` (1, H, W) is the image each cell came from, shared by the batch.
        """
        B, H, W, C = x.shape
        mask = attention_mask(x, source, self.window_size)
        x = pad_grid(x, self.window_size)
        x = window_partition(x, self.window_size).view(B, -1, self._window_area(), C)
        for block in self.blocks:
            x = checkpoint(block, x, mask) if self.grad_checkpointing else block(x, mask)
        return self.tokens_of_windows(x, (H, W))

    def tokens_of_windows(self, x: Tensor, grid: Size) -> Tensor:
        """Return window tokens (B, windows, N, C) to their grid, without padding: (B, H, W, C)."""
        height, width = (side + -side % window for side, window in zip(grid, self.window_size, strict=True))
        x = x.reshape(-1, *self.window_size, x.shape[-1])
        return window_reverse(x, self.window_size, height, width)[:, : grid[0], : grid[1]]

    def _window_area(self) -> int:
        return self.window_size[0] * self.window_size[1]


class MixMIM(nn.Module):
    """The MixMIM encoder with a classification head.

    The arguments are those of timm's Swin, except that `window_size` is optional: windows are
    `ref_window_size` at `ref_img_size` pixels, in patches of 4, and scale with the grid for other values of
    `img_size`, as in `set_input_size`.

    With `strict_img_size=False` (or `dynamic_img_size=True`) images of any size are accepted: windows stay
    the same, grids are padded to whole windows with masked tokens, and the position embedding is interpolated
    to the grid.

    Raises:
        ValueError: the image size is not a multiple of the patch size.
    """

    absolute_pos_embed: Tensor
    # buffers that the published parameter counts include
    frozen_tables: tuple[str, ...] = ("absolute_pos_embed",)
    layer_ids = "release"  # or 'openmmlab': which block a patch merging belongs to in layer decay

    def __init__(
        self,
        img_size: int | Size = 224,
        patch_size: int | Size = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 128,
        depths: Sequence[int] = (2, 2, 18, 2),
        num_heads: Sequence[int] = (4, 8, 16, 32),
        window_size: int | Sequence[Any] | None = None,
        ref_window_size: Sequence[int] = REF_WINDOWS,
        ref_img_size: int = 224,
        always_partition: bool = False,
        strict_img_size: bool = True,
        dynamic_img_size: bool = False,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: type[nn.Module] = nn.LayerNorm,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        _check_size(to_2tuple(img_size), to_2tuple(patch_size))
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = global_pool
        self.output_fmt = "NHWC"
        self.embed_dim = embed_dim
        self.depths = tuple(depths)
        self.num_features = self.head_hidden_size = embed_dim * 2 ** (len(depths) - 1)

        self.patch_embed = PatchEmbed(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            norm_layer=norm_layer,
            strict_img_size=strict_img_size and not dynamic_img_size,
            output_fmt="NHWC",
            **factory,
        )
        grid = self.patch_embed.grid_size
        self.register_buffer("absolute_pos_embed", torch.empty(1, grid[0] * grid[1], embed_dim, **factory))
        self.pos_drop = nn.Dropout(pos_drop_rate)

        self._ref_window_sizes = resolve_stage_window_sizes(ref_window_size, len(depths))
        self._ref_grid_size: Size = (ref_img_size // REF_PATCH, ref_img_size // REF_PATCH)
        self.windows_stated = False  # whether the caller set the windows: then weights are adapted to them
        windows = self._scale_windows(grid, window_size, None)
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        self.layers = nn.ModuleList(
            Stage(
                dim=embed_dim * 2**i,
                num_heads=num_heads[i],
                grid_size=_stage_grid(grid, i),
                window_size=windows[i],
                always_partition=always_partition,
                drop_path=rates[i],
                downsample=i < len(depths) - 1,
                norm_layer=norm_layer,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                proj_drop=proj_drop_rate,
                attn_drop=attn_drop_rate,
                **factory,
            )
            for i in range(len(depths))
        )
        self.feature_info = [
            {
                "num_chs": embed_dim * 2**i,
                "reduction": max(self.patch_embed.patch_size) * 2**i,
                "module": f"layers.{i}",
            }
            for i in range(len(depths))
        ]
        self.norm = norm_layer(self.num_features, **factory)
        self.pool = _new_pool(global_pool)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._new_head(num_classes, **factory)
        self.init_weights()

    # -- construction and resizing -----------------------------------------------------------------

    def _new_head(self, num_classes: int, **factory: Any) -> nn.Module:
        width = self.num_features * self.pool.feat_mult()
        return nn.Linear(width, num_classes, **factory) if num_classes > 0 else nn.Identity()

    def init_weights(self) -> None:
        """Initialise as the release does: Xavier-uniform linear layers, no biases, sin-cos positions."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.absolute_pos_embed.copy_(sincos_positions(self.patch_embed.grid_size, self.embed_dim))

    @property
    def _stages(self) -> list[Stage]:
        return [cast(Stage, stage) for stage in self.layers]

    def _scale_windows(self, grid: Size, window_size: Any, window_ratio: Any) -> tuple[Size, ...]:
        """Return each stage's window on `grid`: scaled with the grid unless given."""
        windows = calc_stage_window_sizes(
            grid, self._ref_window_sizes, self._ref_grid_size, window_size, window_ratio
        )
        if window_size is not None or window_ratio is not None:  # later resizes start from these
            self._ref_window_sizes, self._ref_grid_size = windows, grid
            self.windows_stated = True
        return windows

    def reference_windows(self) -> dict[str, Any]:
        """Return the arguments that give a network the windows of this one."""
        return {
            "ref_window_size": self._ref_window_sizes,
            "ref_img_size": self._ref_grid_size[0] * REF_PATCH,
        }

    def windows_at(self, grid: Size) -> tuple[Size, ...]:
        """Return the windows of the stages for another patch grid (h, w)."""
        windows = calc_stage_window_sizes(grid, self._ref_window_sizes, self._ref_grid_size)
        return self._cut_windows(windows, grid)

    def _cut_windows(self, windows: Sequence[Size], grid: Size) -> tuple[Size, ...]:
        return tuple(
            stage.fit_window(window, _stage_grid(grid, i))
            for i, (stage, window) in enumerate(zip(self._stages, windows, strict=True))
        )

    def starts_from(self, windows: Sequence[Size], grid: Size) -> bool:
        """Whether fine-tuning can start from weights with these windows, as the 384-pixel networks do."""
        reference = resolve_stage_window_sizes(REF_WINDOWS, len(self.layers))
        released = self._cut_windows(calc_stage_window_sizes(grid, reference, REF_GRID), grid)
        larger = all(mine > theirs for mine, theirs in zip(self.patch_embed.grid_size, grid, strict=True))
        return larger and tuple(windows) == released

    def set_input_size(
        self,
        img_size: int | Size | None = None,
        patch_size: int | Size | None = None,
        window_size: int | Sequence[Any] | None = None,
        window_ratio: int | Sequence[int] | None = None,
        always_partition: bool | None = None,
    ) -> None:
        """Change the image size, with the arguments and rules of timm's Swin.

        Windows scale with the grid unless `window_size` (or `window_ratio`, a divisor of the grid) is given.
        Bias tables and the position embedding are interpolated, bicubic, so changing the size and back does
        not restore them exactly.
        """
        new_patch = self.patch_embed.patch_size if patch_size is None else to_2tuple(patch_size)
        new_size = self.patch_embed.img_size if img_size is None else to_2tuple(img_size)
        _check_size(new_size, new_patch)
        window_size, window_ratio = resolve_window_args(window_size, window_ratio, len(self.layers))
        old_grid = self.patch_embed.grid_size
        self.patch_embed.set_input_size(img_size=new_size, patch_size=patch_size)
        grid = self.patch_embed.grid_size
        windows = self._scale_windows(grid, window_size, window_ratio)
        for i, stage in enumerate(self._stages):
            self.feature_info[i]["reduction"] = max(new_patch) * 2**i
            stage.set_input_size(_stage_grid(grid, i), windows[i], always_partition)
        if grid != old_grid:
            self.absolute_pos_embed = resize_positions(self.absolute_pos_embed, old_grid, grid)
        update_model_input_size(
            self,
            new_size,
            patch_size=patch_size,
            window_size=windows,
            always_partition=always_partition,
        )

    # -- timm's model interface --------------------------------------------------------------------

    def no_weight_decay(self) -> set[str]:
        """Return the parameters exempt from weight decay: none, since the release decays bias tables too."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group the parameters by depth, for layer-wise learning rate decay.

        A patch merging has the learning rate of the block after it, as in the release; with `layer_ids`
        'openmmlab', of the block before it. The head is a group of its own with the full rate, as in
        OpenMMLab (in the release it has that of the last block: `Finetune.layer_ids`).
        """
        after = self.layer_ids == "release"
        blocks = [(i + 1, 0) if after else (i, depth - 1) for i, depth in enumerate(self.depths)]
        merging = [
            (rf"^layers\.{i}\.downsample", blocks[i][:1] if coarse else blocks[i])
            for i in range(len(self.layers) - 1)
        ]
        stage = r"^layers\.(\d+)" if coarse else r"^layers\.(\d+)\.blocks\.(\d+)"
        return {
            "stem": r"^patch_embed",
            "blocks": [*merging, (stage, None), (r"^norm", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory: recompute each block in the backward pass."""
        for stage in self._stages:
            stage.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Return the classification head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head (none for 0 classes) and, if given, the pooling ('' for none)."""
        if global_pool is not None:
            self.global_pool = global_pool
            self.pool = _new_pool(global_pool).train(self.training)
        self.num_classes = num_classes
        self.head = self._new_head(num_classes, **get_device_dtype(self)).train(self.training)

    # -- forward -----------------------------------------------------------------------------------

    def add_positions(self, tokens: Tensor) -> Tensor:
        """Add the position embedding to patch tokens (B, H, W, C)."""
        grid, table = (tokens.shape[1], tokens.shape[2]), self.absolute_pos_embed
        if not self.patch_embed.strict_img_size:
            table = resize_positions(table, self.patch_embed.grid_size, grid)
        return self.pos_drop(tokens + table.view(1, *grid, -1))

    def encode(self, tokens: Tensor, sources: Sequence[Tensor] | None = None) -> Tensor:
        """Run the stages on patch tokens (B, H, W, C): (B, H/8, W/8, 8C).

        For mixed inputs, `sources` has one map (1, H, W) per stage: the image each cell came from.
        """
        x = self.add_positions(tokens)
        for i, stage in enumerate(self._stages):
            x = stage.downsample(stage(x, None if sources is None else sources[i]))
        return self.norm(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to the normalised tokens of the last stage (B, H/32, W/32, 8C)."""
        return self.encode(self.patch_embed(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool tokens and return their logits, or the pooled features with `pre_logits`."""
        x = self.head_drop(self.pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the features of selected stages, and the final ones unless `intermediates_only`.

        Args:
            x: images (B, 3, H, W).
            indices: the stages; an int selects the last n.
            norm: apply the final norm to the last stage.
            stop_early: skip the stages after the last selected one.
            output_fmt: 'NCHW' or 'NHWC'.
            intermediates_only: return only the list of intermediate features.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be NCHW or NHWC, not {output_fmt!r}")
        take, last = feature_take_indices(len(self.layers), indices)
        final = len(self.depths) - 1
        intermediates = []
        x = self.add_positions(self.patch_embed(x))
        for i, stage in enumerate(self._stages[: last + 1] if stop_early else self._stages):
            x = stage(x)
            if i in take:
                features = self.norm(x) if norm and i == final else x
                intermediates.append(features.permute(0, 3, 1, 2) if output_fmt == "NCHW" else features)
            x = stage.downsample(x)
        if intermediates_only:
            return intermediates
        return (self.norm(x) if i == final else x), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last selected one; return the selected indices."""
        take, last = feature_take_indices(len(self.layers), indices)
        pruned = last < len(self.layers) - 1
        self.layers = self.layers[: last + 1]
        self._ref_window_sizes = self._ref_window_sizes[: last + 1]
        if pruned:
            self._stages[-1].downsample = nn.Identity()
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_norm or pruned:
            self.norm = nn.Identity()
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return take


def _check_size(img_size: Size, patch_size: Size) -> None:
    for side, patch in zip(img_size, patch_size, strict=True):
        if side <= 0 or side % patch:
            below, above = max(side // patch, 1) * patch, (max(side, 0) // patch + 1) * patch
            raise ValueError(
                f"MixMIM does not support images of {img_size[0]} x {img_size[1]} pixels: each side must be "
                f"a multiple of the patch size {patch} (closest to {side}: {below}, {above}); multiples of "
                f"{8 * patch} need no padding in any stage"
            )


def _new_pool(global_pool: str) -> SelectAdaptivePool2d:
    return SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool), input_fmt="NHWC")


def _stage_grid(grid: Size, stage: int) -> Size:
    """Return the grid of a stage; merging rounds odd grids up."""
    return -(-grid[0] // 2**stage), -(-grid[1] // 2**stage)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: MixMIM) -> dict[str, Tensor]:
    """Convert a published checkpoint for `model`; timm calls this when it loads weights."""
    from mixmim_bench.models.formats import convert

    return convert(state_dict, model)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,  # the release resizes to 256 and crops 224
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "paper_ids": "arXiv:2205.13137",
        "paper_name": "Mixed and Masked Image Modeling for Efficient Visual Representation Learning",
        "origin_url": "https://github.com/Sense-X/MixMIM",
        **kwargs,
    }


_AT_384 = {"input_size": (3, 384, 384), "pool_size": (12, 12), "crop_pct": 1.0}

default_cfgs = generate_default_cfgs(
    {
        "mixmim_base": _cfg(),
        "mixmim_large": _cfg(),
        "mixmim_huge": _cfg(),
        "mixmim_base_384": _cfg(**_AT_384),
        "mixmim_large_384": _cfg(**_AT_384),
        "mixmim_tiny": _cfg(
            num_classes=0, input_size=(3, 32, 32), pool_size=(4, 4), crop_pct=1.0, origin_url=""
        ),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> MixMIM:
    stages = len(kwargs.get("depths", (0, 1, 2, 3)))
    return build_model_with_cfg(
        MixMIM,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": tuple(range(stages)), "feature_cls": "getter"},
        **kwargs,
    )


_REF_384 = {"ref_window_size": (16, 16, 24, 12), "ref_img_size": 384}


@register_model
def mixmim_base(pretrained: bool = False, **kwargs: Any) -> MixMIM:
    """MixMIM-B at 224 pixels, 88 M parameters."""
    return _create("mixmim_base", pretrained, **kwargs)


@register_model
def mixmim_large(pretrained: bool = False, **kwargs: Any) -> MixMIM:
    """MixMIM-L at 224 pixels, 197 M parameters."""
    args = {"embed_dim": 192, "num_heads": (6, 12, 24, 48)}
    return _create("mixmim_large", pretrained, **{**args, **kwargs})


@register_model
def mixmim_huge(pretrained: bool = False, **kwargs: Any) -> MixMIM:
    """MixMIM-H at 224 pixels, 659 M parameters."""
    args = {"embed_dim": 352, "num_heads": (11, 22, 44, 88)}
    return _create("mixmim_huge", pretrained, **{**args, **kwargs})


@register_model
def mixmim_base_384(pretrained: bool = False, **kwargs: Any) -> MixMIM:
    """MixMIM-B with the windows of its 384-pixel release (16, 16, 24, 12)."""
    return _create("mixmim_base_384", pretrained, **{**_REF_384, **kwargs})


@register_model
def mixmim_large_384(pretrained: bool = False, **kwargs: Any) -> MixMIM:
    """MixMIM-L with the windows of its 384-pixel release (16, 16, 24, 12)."""
    args = {"embed_dim": 192, "num_heads": (6, 12, 24, 48), **_REF_384}
    return _create("mixmim_large_384", pretrained, **{**args, **kwargs})


@register_model
def mixmim_tiny(pretrained: bool = False, **kwargs: Any) -> MixMIM:
    """MixMIM-tiny, 5 M parameters: three stages on patches of 2 pixels. Not of the paper.

    Raises ValueError for an image size other than 32.
    """
    size = to_2tuple(kwargs.get("img_size") or TINY_SIZE)
    if tuple(size) != (TINY_SIZE, TINY_SIZE):
        raise ValueError(
            f"mixmim-tiny computes {TINY_SIZE} x {TINY_SIZE} pixels, at which it was pretrained, not "
            f"{size[0]} x {size[1]}; leave out the size, or use mixmim-b"
        )
    args = {
        "img_size": TINY_SIZE,
        "patch_size": 2,
        "embed_dim": 96,
        "depths": (1, 2, 2),
        "num_heads": (3, 6, 12),
        "ref_window_size": (8, 8, 4),
        "ref_img_size": 64,  # its grid in patches of 4 is that of 32 pixels in patches of 2
    }
    return _create("mixmim_tiny", pretrained, **{**args, **kwargs})
