"""MixMIM pretraining: two images are mixed token by token and both reconstructed (arXiv 2205.13137).

Where the mask is 1, an image's patch tokens are replaced by those of its partner, the image at the other end
of the batch. In the encoder, tokens attend only to tokens of the same image; the decoder receives each
image's tokens, with mask tokens elsewhere, and predicts the hidden pixels.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mixmim_bench.models.mixmim import MixMIM
from mixmim_bench.models.positions import Size, sincos_positions


@dataclass(frozen=True)
class Reconstruction:
    """The output of a pretraining step."""

    loss: Tensor  # mean squared error over all cells and pixels
    patches: Tensor  # predicted, normalised pixels of every cell, (B, h * w, cell * cell * 3)
    mask: Tensor  # 1 where an image's tokens were replaced by its partner's, (h, w)


class MixMIMPretraining(MixMIM):
    """The MixMIM encoder with its pretraining decoder.

    Parameter names are those of the released pretraining checkpoints. The released decoder's layer norms
    use eps 1e-5; OpenMMLab's use 1e-6 (`decoder_norm_eps`). Other arguments are passed to MixMIM.

    Attributes:
        cell: side in pixels of the cells that are masked and predicted: those of a token of the last stage.
        cells: their grid (h, w).
    """

    decoder_pos_embed: Tensor
    frozen_tables = (*MixMIM.frozen_tables, "decoder_pos_embed")

    def __init__(
        self,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        decoder_norm_eps: float = 1e-5,
        norm_pix_loss: bool = True,
        **encoder: Any,
    ) -> None:
        super().__init__(**{**encoder, "num_classes": 0})
        height, width = self.patch_embed.img_size
        self.cell = max(self.patch_embed.patch_size) * 2 ** (len(self.layers) - 1)
        if height % self.cell or width % self.cell:
            raise ValueError(
                f"pretraining requires image sides that are multiples of {self.cell}, not {height} x {width}"
            )
        self.norm_pix_loss = norm_pix_loss
        self.cells: Size = (height // self.cell, width // self.cell)

        norm = partial(nn.LayerNorm, eps=decoder_norm_eps)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.register_buffer("decoder_pos_embed", sincos_positions(self.cells, decoder_dim))
        self.decoder_embed = nn.Linear(self.num_features, decoder_dim)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_dim, decoder_num_heads, qkv_bias=True, norm_layer=norm)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = norm(decoder_dim)
        self.decoder_pred = nn.Linear(decoder_dim, self.cell**2 * self.in_chans)
        self.init_weights()
        trunc_normal_(self.mask_token, std=0.02)

    def random_mask(self, ratio: float = 0.5, generator: torch.Generator | None = None) -> Tensor:
        """Draw a mask (h, w): 1 for `int(cells * ratio)` exchanged cells, else 0."""
        count = self.cells[0] * self.cells[1]
        order = torch.rand(count, generator=generator).argsort()
        mask = torch.zeros(count)
        mask[order[: int(count * ratio)]] = 1.0
        return mask.view(self.cells).to(self.mask_token.device)

    def mix(self, images: Tensor, mask: Tensor) -> Tensor:
        """Embed images (B, 3, H, W) and exchange tokens with their partners: (B, H/4, W/4, C)."""
        tokens = self.patch_embed(images)
        theirs = _spread(mask, tokens.shape[1] // self.cells[0])[None, ..., None] == 1
        return torch.where(theirs, tokens.flip(0), tokens)

    def sources(self, mask: Tensor) -> Sequence[Tensor]:
        """Return for each stage which image its cells come from, (1, H, W) each."""
        stages = len(self.layers)
        return [_spread(mask, 2 ** (stages - 1 - stage))[None] for stage in range(stages)]

    def decode(self, encoded: Tensor, mask: Tensor) -> Tensor:
        """Predict the cells of both images of each mixture from encoded tokens (B, h, w, 8C).

        Returns (2B, h * w, pixels): first from the tokens where the mask is 0, then from those where it is 1.
        """
        tokens = self.decoder_embed(encoded).flatten(1, 2)
        theirs = mask.flatten()[None, :, None] == 1
        hidden = self.mask_token.expand_as(tokens).to(tokens.dtype)
        x = torch.cat([torch.where(theirs, hidden, tokens), torch.where(theirs, tokens, hidden)])
        x = x + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))

    def target(self, images: Tensor) -> Tensor:
        """Split images (B, 3, H, W) into cells (B, h * w, pixels), normalised per cell if `norm_pix_loss`."""
        B = len(images)
        h, w = self.cells
        cells = images.view(B, -1, h, self.cell, w, self.cell).permute(0, 2, 4, 3, 5, 1)
        cells = cells.reshape(B, h * w, -1)
        if not self.norm_pix_loss:
            return cells
        mean, variance = cells.mean(-1, keepdim=True), cells.var(-1, keepdim=True)
        return (cells - mean) / (variance + 1e-6).sqrt()

    def forward(  # type: ignore[override]
        self,
        images: Tensor,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        ratio: float = 0.5,
    ) -> Reconstruction:
        """Mix, encode and decode images, and compute the loss over all cells.

        The loss is computed here because distributed training synchronises the gradients of `forward` only.

        Args:
            images: (B, 3, H, W).
            mask: (h, w), shared by the batch; random by default.
            generator: draws the mask; torch's by default.
            ratio: of the cells that a random mask exchanges.
        """
        mask = self.random_mask(ratio, generator) if mask is None else mask
        encoded = self.encode(self.mix(images, mask), self.sources(mask))
        own, partners = self.decode(encoded, mask).chunk(2)
        # use each cell's prediction from the mixture in which it was hidden: the image's own or its partner's
        theirs = mask.flatten()[None, :, None] == 1
        patches = torch.where(theirs, own, partners.flip(0))
        loss = (patches - self.target(images)).square().mean()
        return Reconstruction(loss, patches, mask)


def _spread(mask: Tensor, times: int) -> Tensor:
    """Repeat each cell of a mask (h, w) as a square of `times` x `times`."""
    return mask.repeat_interleave(times, 0).repeat_interleave(times, 1)


def pretraining_model(arch: str, **kwargs: Any) -> MixMIMPretraining:
    """Build the pretraining model of a registered MixMIM, such as 'mixmim_base'.

    Keyword arguments are those of MixMIMPretraining.
    """
    import timm

    decoder = {name: kwargs.pop(name) for name in list(kwargs) if name in _DECODER}
    with torch.device("meta"):
        encoder = timm.create_model(arch, **kwargs)
    config = {
        "img_size": encoder.patch_embed.img_size,
        "patch_size": encoder.patch_embed.patch_size,
        **encoder.reference_windows(),
        "embed_dim": encoder.embed_dim,
        "depths": encoder.depths,
        "num_heads": tuple(stage.blocks[0].attn.num_heads for stage in encoder._stages),
    }
    return MixMIMPretraining(**{**config, **kwargs, **decoder})


_DECODER = [name for name in inspect.signature(MixMIMPretraining).parameters if name != "encoder"]
