"""The registered backbones; any other timm model is accepted by its timm name."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from mixmim_bench.cache import cache_folder
from mixmim_bench.errors import BenchError, nearest
from mixmim_bench.factcache import fact_of
from mixmim_bench.specs import ModelSpec, WeightsSpec

_PAPER = "arXiv:2205.13137"
_OPENMMLAB = "https://download.openmmlab.com"

_PRETRAINED = "MixMIM, 600 epochs of ImageNet-1K without labels"
_FINETUNED = "MixMIM, 600 epochs of ImageNet-1K, then fine-tuned on its labels"

PIXELS = "pixels"  # the model that returns the image itself
PACKAGED = Path(__file__).parent / "pretrained"

_GOOGLE_DRIVE = "https://drive.google.com/file/d"


# 2: at other image sizes the position embedding is interpolated, as in the release; 1 recomputed it
MIXMIM_VERSION = 2


def _model(
    name: str, arch: str, side: int, params: int, macs: int, weights: tuple[WeightsSpec, ...]
) -> ModelSpec:
    """Build the spec of a MixMIM for square images; the names of its checkpoints become its aliases."""
    return ModelSpec(
        name=name,
        arch=arch,
        weights=weights,
        aliases=tuple(checkpoint.name for checkpoint in weights),
        reference=_PAPER,
        version=MIXMIM_VERSION,
        image_size=(side, side),
        params=params,
        macs=macs,
    )


# The first checkpoint of a model found on this machine is used, pretrained before fine-tuned ones.
_BASE_WEIGHTS = (
    WeightsSpec(
        name="mixmim_mixmim-base_16xb128-coslr-300e_in1k",
        file="mixmim-base-p16_16xb128-coslr-300e_in1k_20221208-44fe8d2c.pth",
        url=f"{_OPENMMLAB}/mmselfsup/1.x/mixmim/mixmim-base-p16_16xb128-coslr-300e_in1k/"
        "mixmim-base-p16_16xb128-coslr-300e_in1k_20221208-44fe8d2c.pth",
        sha256="44fe8d2c",
        pretraining="MixMIM, 300 epochs of ImageNet-1K without labels",
    ),
    WeightsSpec(
        name="mixmim-base_3rdparty_in1k",
        file="mixmim-base_3rdparty_in1k_20221206-e40e2c8c.pth",
        url=f"{_OPENMMLAB}/mmclassification/v0/mixmim/mixmim-base_3rdparty_in1k_20221206-e40e2c8c.pth",
        sha256="e40e2c8c",
        pretraining="MixMIM on ImageNet-1K, then fine-tuned on its labels",
        finetuned=True,
        published={"top1": 84.6, "top5": 97.0},
    ),
    WeightsSpec(
        name="mixmim-base_mixmim-pre_8xb128-coslr-100e_in1k",
        file="mixmim-base-p16_ft-8xb128-coslr-100e_in1k_20221208-41ecada9.pth",
        url=f"{_OPENMMLAB}/mmselfsup/1.x/mixmim/mixmim-base-p16_16xb128-coslr-300e_in1k/"
        "mixmim-base-p16_ft-8xb128-coslr-100e_in1k/"
        "mixmim-base-p16_ft-8xb128-coslr-100e_in1k_20221208-41ecada9.pth",
        sha256="41ecada9",
        pretraining="MixMIM, 300 epochs of ImageNet-1K, then 100 fine-tuned on its labels",
        finetuned=True,
        published={"top1": 84.63},
    ),
    WeightsSpec(
        name="base_600ep",
        file="base_600ep.pth",
        home=f"{_GOOGLE_DRIVE}/1pZYmTv08xK_kOe2kk6ahuvgJVkHm-ZIa",
        pretraining=_PRETRAINED,
    ),
    WeightsSpec(
        name="base_600ep_ft",
        file="base_600ep_ft.pth",
        home=f"{_GOOGLE_DRIVE}/1zkOyh8jnFW7iYG3sOfp6LLG5wu4VbiXb",
        pretraining=_FINETUNED,
        finetuned=True,
        published={"top1": 85.1},
    ),
)

_LARGE_WEIGHTS = (
    WeightsSpec(
        name="large_600ep",
        file="large_600ep.pth",
        home=f"{_GOOGLE_DRIVE}/1dM8Lu2nVEukxPwn7PLmDmRAYwQV59ttx",
        pretraining=_PRETRAINED,
    ),
    WeightsSpec(
        name="large_600ep_ft",
        file="large_600ep_ft.pth",
        home=f"{_GOOGLE_DRIVE}/1b1BxGAewK1ICxxCEwF24YEDSjlQ9Ts9n",
        pretraining=_FINETUNED,
        finetuned=True,
        published={"top1": 85.9},
    ),
)
_BASE_384_WEIGHTS = (
    WeightsSpec(
        name="base_600ep_ft_384x384",
        file="base_600ep_ft_384x384.pth",
        home=f"{_GOOGLE_DRIVE}/1MIng19USn5T770YZ6mFfqTgNCCz_kEGL",
        pretraining=_FINETUNED,
        finetuned=True,
        published={"top1": 86.3},
    ),
)
_LARGE_384_WEIGHTS = (
    WeightsSpec(
        name="large_600ep_ft_384x384",
        file="large_600ep_ft_384x384.pth",
        home=f"{_GOOGLE_DRIVE}/1_IfqoQvAe2Z2jC7HBKi3umKD6c8qOu0P",
        pretraining=_FINETUNED,
        finetuned=True,
        published={"top1": 86.9},
    ),
)

_TINY_WEIGHTS = (
    WeightsSpec(
        name="tiny_10ep",
        file="mixmim_tiny_10ep.safetensors",
        packaged=True,
        sha256="91f307d04cd1505dfc1fa5679f493c1b9698481a4a73003dec7728732489703a",
        pretraining="MixMIM, 10 epochs of Fashion-MNIST, digits and MNIST-5k (train only), without labels",
    ),
)

# parameters include the 1,000-way classifier and the frozen position embedding; multiply-adds are fvcore's
MODELS = (
    _model("mixmim-b", "mixmim_base", 224, 88_344_352, 16_352_930_816, _BASE_WEIGHTS),
    _model("mixmim-l", "mixmim_large", 224, 197_396_668, 35_858_735_616, _LARGE_WEIGHTS),
    _model("mixmim-h", "mixmim_huge", 224, 659_262_658, 117_667_154_176, ()),
    _model("mixmim-b-384", "mixmim_base_384", 384, 89_577_440, 52_570_710_016, _BASE_384_WEIGHTS),
    _model("mixmim-l-384", "mixmim_large_384", 384, 199_246_300, 112_150_450_176, _LARGE_384_WEIGHTS),
    _model("mixmim-tiny", "mixmim_tiny", 32, 4_952_775, 158_926_848, _TINY_WEIGHTS),
    ModelSpec(
        name=PIXELS,
        arch=PIXELS,
        weightless=True,
        image_size=(32, 32),
        params=3_073_000,
        macs=3_072_000,
    ),
)


def by_name(specs: Iterable[ModelSpec]) -> dict[str, ModelSpec]:
    """Index models by name and alias; raises ValueError for duplicates."""
    table: dict[str, ModelSpec] = {}
    for spec in specs:
        for name in (spec.name, *spec.aliases):
            if name in table:
                raise ValueError(f"duplicate model name {name!r}")
            table[name] = spec
    return table


def find_model(name: str) -> ModelSpec:
    """Find a model by short name, alias, architecture or timm name; raises BenchError.

    The alias of a checkpoint selects the model with that checkpoint only.
    """
    known = by_name(MODELS)
    known.update({spec.arch: spec for spec in MODELS})
    if name in known:
        selected = tuple(weights for weights in known[name].weights if weights.name == name)
        return dataclasses.replace(known[name], weights=selected or known[name].weights)

    def look_up() -> bool:
        import timm

        return timm.is_model(name) and (name in timm.list_pretrained() or "." not in name)

    if fact_of(name, "can be named", look_up):
        return ModelSpec(name=name, arch=name)
    import timm

    names = [*known, *timm.list_models(), *timm.list_pretrained()]
    raise BenchError(f"no model {name!r}; {nearest(name, names)} Any timm model is accepted.")


def weights_folder() -> Path:
    """Return the folder that checkpoints are loaded from and downloaded to."""
    return cache_folder() / "weights"


def place_of(weights: WeightsSpec) -> Path:
    """Return the path of a published checkpoint, in this package or in the cache folder."""
    return (PACKAGED if weights.packaged else weights_folder()) / weights.file


def has_weights(weights: WeightsSpec) -> bool:
    """Whether the file of a published checkpoint is on this machine."""
    return place_of(weights).is_file()
