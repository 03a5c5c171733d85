"""The backbones that the suite knows by name; any other timm model is accepted by its timm name."""

import dataclasses
from collections.abc import Iterable

from mixmim_bench.errors import BenchError, nearest
from mixmim_bench.specs import ModelSpec, WeightsSpec

_PAPER = "arXiv:2205.13137"
_OPENMMLAB = "https://download.openmmlab.com"
_RELEASE = "https://github.com/Sense-X/MixMIM"

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
)

MODELS = (
    ModelSpec(
        name="mixmim-b",
        arch="mixmim_base",
        weights=_BASE_WEIGHTS,
        aliases=tuple(weights.name for weights in _BASE_WEIGHTS),
        reference=_PAPER,
    ),
    ModelSpec(name="mixmim-l", arch="mixmim_large", reference=_PAPER),
    ModelSpec(name="mixmim-h", arch="mixmim_huge", reference=_PAPER),
    ModelSpec(name="mixmim-b-384", arch="mixmim_base_384", reference=_PAPER),
    ModelSpec(name="mixmim-l-384", arch="mixmim_large_384", reference=_PAPER),
)


def by_name(specs: Iterable[ModelSpec]) -> dict[str, ModelSpec]:
    """Index models by name and alias; raises ValueError for a name that two share."""
    table: dict[str, ModelSpec] = {}
    for spec in specs:
        for name in (spec.name, *spec.aliases):
            if name in table:
                raise ValueError(f"two models are called {name!r}")
            table[name] = spec
    return table


def find_model(name: str) -> ModelSpec:
    """Find a model by short name, alias, architecture or timm name; raises BenchError.

    An alias that names a checkpoint means the model with that checkpoint and no other.
    """
    known = by_name(MODELS)
    known.update({spec.arch: spec for spec in MODELS})
    if name in known:
        named = tuple(weights for weights in known[name].weights if weights.name == name)
        return dataclasses.replace(known[name], weights=named or known[name].weights)
    import timm

    if timm.is_model(name):
        return ModelSpec(name=name, arch=name)
    everything = [*known, *timm.list_models(), *timm.list_pretrained()]
    raise BenchError(f"no model {name!r}; {nearest(name, everything)} Any model that timm knows is accepted.")
