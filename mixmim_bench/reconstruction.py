"""Draw what a pretrained MixMIM reconstructs: two images, their mixture, and both reconstructions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from torch import Tensor

from mixmim_bench.data.loading import Unreadable
from mixmim_bench.data.pictures import Pictures
from mixmim_bench.data.transforms import eval_transform
from mixmim_bench.errors import BenchError
from mixmim_bench.models.build import preprocessing
from mixmim_bench.models.checkpoints import load_weights, read_checkpoint
from mixmim_bench.models.pretraining import MixMIMPretraining
from mixmim_bench.pretraining import build_network
from mixmim_bench.progress import download_bar
from mixmim_bench.specs import AUTO, ModelSpec, Preprocessing
from mixmim_bench.weights.find import resolve_weights

TITLES = ("image A", "image B", "mixed input", "reconstruction of A", "reconstruction of B")
GAP, HEADING = 8, 20  # pixels
LEAST = 128  # pixels of the width of an image


def own_weights(model: ModelSpec) -> Path:
    """Find the weights of a model, downloading them if necessary; raises BenchError if it has none."""
    weights = resolve_weights(model, AUTO, download_bar(Console(stderr=True)))
    if weights.random:
        raise BenchError(f"{model.name}: random weights reconstruct nothing; pass --weights PATH")
    return Path(weights.path)


def load_network(model: ModelSpec, size: tuple[int, int], weights: Path) -> MixMIMPretraining:
    """Build a pretraining network with its weights; raises BenchError, also for weights without a decoder.

    Checkpoints of `pretrain` say how their decoder was built.
    """
    settings = read_checkpoint(weights).get("settings") or {}
    decoder = {
        key: value for key, value in settings.items() if key.startswith("decoder_") or key == "norm_pix_loss"
    }
    network = build_network(model, size, seed=0, **decoder)
    load_weights(network, weights, model.arch)
    return network.eval()


@torch.no_grad()
def reconstruct(network: MixMIMPretraining, pair: Tensor, mask: Tensor) -> list[Tensor]:
    """Mix two images, and reconstruct both from the mixture.

    Args:
        network: with the weights of a pretraining.
        pair: normalised images (2, 3, H, W).
        mask: (h, w), 1 where cells of the first image are replaced by those of the second.

    Returns:
        Five normalised images (3, H, W): both images, their mixture, and both reconstructions, whose visible
        cells are those of the images. Pixels predicted as normalised per cell get mean and deviation of the
        image's cell.
    """
    encoded = network.encode(network.mix(pair, mask), network.sources(mask))
    own, partners = network.decode(encoded, mask).chunk(2)
    hidden = mask.flatten()[:, None] == 1
    first, second = (_cells(image, network.cell) for image in pair)
    if network.norm_pix_loss:
        own_pixels, partners_pixels = _like(own[0], first), _like(partners[0], second)
    else:
        own_pixels, partners_pixels = own[0], partners[0]
    cells = [
        first,
        second,
        torch.where(hidden, second, first),
        torch.where(hidden, own_pixels, first),
        torch.where(hidden, second, partners_pixels),
    ]
    return [_image(each, network.cells, network.cell) for each in cells]


def _cells(image: Tensor, side: int) -> Tensor:
    """Split an image (3, H, W) into cells (h * w, side * side * 3)."""
    rows, columns = image.shape[1] // side, image.shape[2] // side
    return image.view(3, rows, side, columns, side).permute(1, 3, 2, 4, 0).reshape(rows * columns, -1)


def _image(cells: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Undo `_cells`."""
    image = cells.view(*grid, side, side, 3).permute(4, 0, 2, 1, 3)
    return image.reshape(3, grid[0] * side, grid[1] * side)


def _like(normalised: Tensor, cells: Tensor) -> Tensor:
    """Give predictions the mean and deviation of the cells."""
    deviation = (cells.var(-1, keepdim=True) + 1e-6).sqrt()
    return normalised * deviation + cells.mean(-1, keepdim=True)


def draw(
    network: MixMIMPretraining, model: ModelSpec, pictures: Pictures, mask_ratio: float, seed: int
) -> Image.Image:
    """Draw one row for each pair of consecutive images; the last of an odd number is paired with the first.

    Images narrower than LEAST pixels are enlarged.

    Raises BenchError for fewer than two images, or one that cannot be read.
    """
    if len(pictures) < 2:
        raise BenchError(f"reconstruct mixes images in pairs and needs at least 2, not {len(pictures)}")
    settings = _preprocessing(network, model)
    transform = eval_transform(settings)
    unreadable = Unreadable(pictures, allowed=False)
    images = []
    for row in range(len(pictures)):
        try:
            images.append(transform(pictures.load(row)))
        except Exception as error:
            unreadable.add({row: str(error)})
    unreadable.check()
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for place in range(0, len(images), 2):
        pair = torch.stack([images[place], images[(place + 1) % len(images)]])
        rows.append(reconstruct(network, pair, network.random_mask(mask_ratio, generator)))
    return _draw_rows(rows, settings)


def _preprocessing(network: MixMIMPretraining, model: ModelSpec) -> Preprocessing:
    import dataclasses

    return dataclasses.replace(preprocessing(model), size=network.patch_embed.img_size)


def _draw_rows(rows: Sequence[Sequence[Tensor]], settings: Preprocessing) -> Image.Image:
    times = max(1, -(-LEAST // settings.size[1]))  # small images are enlarged, pixel by pixel
    height, width = (side * times for side in settings.size)
    size = (len(TITLES) * (width + GAP) - GAP, HEADING + len(rows) * (height + GAP) - GAP)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (settings.mean, settings.std))
    for column, title in enumerate(TITLES):
        pen.text((column * (width + GAP), 4), title, fill="black")
    for line, row in enumerate(rows):
        for column, image in enumerate(row):
            pixels = ((image * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
            tile = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
            tile = tile.resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(tile, (column * (width + GAP), HEADING + line * (height + GAP)))
    return canvas
