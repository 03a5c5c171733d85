"""Models as users name them: a name, `NAME@SIZE`, or the path of a model file.

A model file is TOML (OWN.md describes the keys):

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
PREPROCESSING = ("image_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
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


def is_model_file(text: str, folder: Path = Path()) -> bool:
    """Return whether a text is the path of a file, with or without a size, and not MODEL=WEIGHTS."""
    sized = _SIZED.fullmatch(text)
    path = sized["name"] if sized else text
    return path.endswith(SUFFIX) and (folder / Path(path).expanduser()).is_file()


def model_and_weights(text: str, otherwise: str = AUTO) -> tuple[ModelSpec, str]:
    """Split `MODEL=WEIGHTS` into a model and its weights (a path, 'auto', 'random').

    Args:
        text: as above, or the model alone.
        otherwise: the weights of a model alone.

    Raises:
        BenchError: there is no such model.
    """
    if "=" not in text or is_model_file(text):
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
    _check_name(top, name, base)
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


def _check_name(top: Table, name: str, base: ModelSpec) -> None:
    """Check that a file is not named like another model; raises TaskFileError."""
    if "@" in name or "=" in name or name == RANDOM_INIT:
        raise top.error("", f"{name!r} is not a name for a model: no @ and no =; rename the file")
    if name in by_name(MODELS):
        raise top.error("", f"a registered model is called {name!r}; rename the file")
    try:
        other = find_model(name)
    except BenchError:
        return
    if other.arch != base.arch:
        raise top.error("", f"{name!r} is the name of another model of timm; rename the file")


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
    top.known += PREPROCESSING
    given = {key: top.values.pop(key) for key in PREPROCESSING if key in top.values}
    for key, value in given.items():
        try:
            given[key] = checked_preprocessing(key, value)
        except ValueError as error:
            raise top.error(key, str(error)) from None
    return {"size" if key == "image_size" else key: value for key, value in given.items()}


def checked_preprocessing(key: str, value: Any) -> Any:
    """Return a value of PREPROCESSING as the JSON of `ModelSpec.preprocessing`; raises ValueError."""
    if key == "image_size":
        return _size(value)
    if key in ("mean", "std"):
        return _of_channels(key, value)
    if key == "crop_pct":
        if type(value) not in (int, float) or not 0.0 < value <= 1.0:
            raise ValueError(f"must be above 0 and at most 1, not {value!r}")
        return float(value)
    known = INTERPOLATIONS if key == "interpolation" else CROP_MODES
    if value not in known:
        raise ValueError(f"no {value!r}; {nearest(str(value), known)}")
    return value


def _size(value: Any) -> list[int]:
    """Convert a side in pixels, or (height, width)."""
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(f"must be a side in pixels or [height, width], not {value!r}")
    return sides


def _of_channels(key: str, value: Any) -> list[float]:
    values = value.tolist() if hasattr(value, "tolist") else value  # an array or a tensor
    numbers = isinstance(values, list | tuple) and all(type(each) in (int, float) for each in values)
    if not numbers or len(values) != 3:
        raise ValueError(f"must be three numbers, of red, green and blue, not {value!r}")
    if max(abs(each) for each in values) > 1.0 or (key == "std" and min(values) <= 0.0):
        raise ValueError(
            f"is {list(values)}; pixels are scaled to 0 to 1, so divide values of 0 to 255 by 255"
        )
    return [float(each) for each in values]
