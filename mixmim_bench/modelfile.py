"""Models as users name them: a name, `NAME@SIZE`, or the path of a model file.

A model file is TOML (README.md, "Your own model", describes the keys):

    schema = 1
    arch = "vit_small_patch16_224"   # any timm architecture, or the name of a registered model
    weights = "checkpoint.pth"       # relative to the file; or "auto", "random"
    image_size = 96
    mean = [0.5, 0.5, 0.5]
    [arguments]                      # of the architecture
    patch_size = 8
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

from mixmim_bench.errors import BenchError, nearest
from mixmim_bench.registry import MODELS, by_name, find_model
from mixmim_bench.specs import AUTO, RANDOM_INIT, ModelSpec
from mixmim_bench.tomlfile import Table, read_toml

SCHEMA = 1
SUFFIX = ".toml"
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")  # of Pillow
CROP_MODES = ("center", "squash", "border")  # of timm
_SIZED = re.compile(r"(?P<name>.+)@(?P<height>[1-9]\d*)(x(?P<width>[1-9]\d*))?")


def open_model(text: str) -> ModelSpec:
    """Find a model by name, `NAME@SIZE`, `NAME@HEIGHTxWIDTH` or path of a model file; raises BenchError."""
    if text.endswith(SUFFIX):
        return read_model(Path(text))
    sized = _SIZED.fullmatch(text)
    if sized is None:
        return find_model(text)
    model = open_model(sized["name"])
    height, width = int(sized["height"]), int(sized["width"] or sized["height"])
    name = text if not sized["name"].endswith(SUFFIX) else f"{model.name}@{text.rpartition('@')[2]}"
    return dataclasses.replace(
        model, name=name, preprocessing={**model.preprocessing, "size": [height, width]}
    )


def model_and_weights(text: str, otherwise: str = AUTO) -> tuple[ModelSpec, str]:
    """Split `MODEL=WEIGHTS` into a model and its weights (a path, 'auto', 'random').

    Args:
        text: as above, or the model alone.
        otherwise: the weights of a model alone.

    Raises:
        BenchError: there is no such model.
    """
    if "=" not in text or (text.endswith(SUFFIX) and Path(text).is_file()):
        return open_model(text), otherwise
    name, _, weights = text.partition("=")
    if not name or not weights:
        raise BenchError(f"-m {text}: must be MODEL=PATH, with the path of a checkpoint")
    try:
        return open_model(name), weights
    except BenchError as error:
        raise BenchError(
            f"-m {text}: {error} To show the checkpoint under a name of your own, write a model file."
        ) from error


def read_model(path: Path) -> ModelSpec:
    """Read and check a model file; raises TaskFileError, which names file and key."""
    top = read_toml(path.expanduser())
    schema = top.take("schema", int)
    if schema != SCHEMA:
        raise top.error("schema", f"is {schema}, and this version reads schema {SCHEMA}")
    base = _architecture(top)
    arguments = top.take("arguments", dict, {})
    preprocessing = _preprocessing(top)
    name = path.stem
    known = by_name(MODELS).get(name)
    if known is not None and known.arch != base.arch:
        raise top.error("", f"a registered model is called {name!r}; rename the file")
    if "/" in name or "@" in name or "=" in name or name == RANDOM_INIT:
        raise top.error("", f"{name!r} is not a name for a model: no @ and no =; rename the file")
    model = dataclasses.replace(
        base,
        name=name,
        aliases=(),
        kwargs={**base.kwargs, **arguments},
        reference=top.take("reference", str, base.reference),
        preprocessing=preprocessing,
        checkpoint=_checkpoint(top, path.expanduser().parent),
    )
    top.finish()
    return model


def _architecture(top: Table) -> ModelSpec:
    name = top.take("arch", str)
    try:
        return find_model(name)
    except BenchError as error:
        raise top.error("arch", str(error)) from error


def _checkpoint(top: Table, folder: Path) -> str:
    text = top.take("weights", str, AUTO)
    if text in (AUTO, "random"):
        return text
    path = folder / Path(text).expanduser()
    if not path.is_file():
        raise top.error("weights", f"no file {path} (or use 'auto' or 'random')")
    return str(path.resolve())


def _preprocessing(top: Table) -> dict[str, Any]:
    """Take what differs from the architecture's own preprocessing."""
    values: dict[str, Any] = {}
    if "image_size" in top.values:
        values["size"] = _size(top)
    for key, known in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
        if key in top.values:
            values[key] = top.take(key, str)
            if values[key] not in known:
                raise top.error(key, f"no {values[key]!r}; {nearest(values[key], known)}")
    if "crop_pct" in top.values:
        values["crop_pct"] = top.take("crop_pct", float)
        if not 0.0 < values["crop_pct"] <= 1.0:
            raise top.error("crop_pct", f"must be above 0 and at most 1, not {values['crop_pct']}")
    for key in ("mean", "std"):
        if key in top.values:
            values[key] = _of_channels(top, key)
    top.known += ["image_size", "interpolation", "crop_mode", "crop_pct", "mean", "std"]
    return values


def _size(top: Table) -> list[int]:
    """Take a side in pixels, or [height, width]."""
    value = top.values.pop("image_size")
    sides = [value, value] if type(value) is int else value
    if not isinstance(sides, list) or len(sides) != 2 or not all(type(s) is int and s > 0 for s in sides):
        raise top.error("image_size", f"must be a side in pixels or [height, width], not {value!r}")
    return sides


def _of_channels(top: Table, key: str) -> list[float]:
    values = top.values.pop(key)
    numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    if not numbers or len(values) != 3:
        raise top.error(key, f"must be three numbers, of red, green and blue, not {values!r}")
    if max(abs(value) for value in values) > 1.0 or (key == "std" and min(values) <= 0.0):
        raise top.error(key, f"is {values}; pixels are scaled to 0 to 1, so divide values of 0 to 255 by 255")
    return [float(value) for value in values]
