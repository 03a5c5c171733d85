"""The suite from Python: networks and images of a session, and results as a DataFrame.

frame = run_suite(models={"mine": network}, tasks=["digits"], protocols=["linear", "knn"])
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from torch import Tensor, nn

from mixmim_bench.codehash import code_digest
from mixmim_bench.data import EXACT
from mixmim_bench.data.layouts.memory import hold, part_of
from mixmim_bench.data.roots import find_roots
from mixmim_bench.data.transforms import OBJECTS
from mixmim_bench.errors import BenchError, counted, nearest
from mixmim_bench.machine import open_machine
from mixmim_bench.modelfile import checked_preprocessing
from mixmim_bench.models.objects import register_network
from mixmim_bench.registry import MODELS, by_name
from mixmim_bench.report.frame import to_long
from mixmim_bench.report.write import report_session
from mixmim_bench.scoring.metrics import CLASSIFICATION, METRICS, MULTILABEL
from mixmim_bench.specs import AUTO, LayoutSpec, ModelSpec, TaskSpec
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.session import Session
from mixmim_bench.suite.wanted import Selection

Model = str | Path | nn.Module | ModelSpec
Task = str | Path | Mapping[str, Any] | TaskSpec

_NAME = re.compile(r"[\w.+-]+")
_HELD_OUT = 10  # percent of train that is val, where none is given
# preprocessing of a network that has no configuration of timm
_PLAIN: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "mean": (0.485, 0.456, 0.406),  # of ImageNet
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}


def run_suite(
    models: Model | Sequence[Model] | Mapping[str, Model] = "mixmim-b",
    tasks: Task | Sequence[Task] | Mapping[str, Task] = (),
    protocols: str | Sequence[str] = ("linear", "finetune"),
    *,
    suites: str | Sequence[str] = (),
    weights: str | Path = AUTO,
    preset: str = AUTO,
    layers: str = "",
    settings: Mapping[str, Any] | None = None,
    seeds: int | Sequence[int] = 0,
    limit: int = 0,
    controls: bool = False,
    precision: str = "float32",
    resize: str = EXACT,
    results: str | Path = "results",
    data_root: str | Path | Mapping[str, str | Path] = "",
    trust_task_code: bool = False,
    device: str = AUTO,
    engine: str = AUTO,
    threads: int | None = None,
    workers: int | None = None,
    batch_size: int | None = None,
    save_weights: bool = False,
    report: bool = True,
    progress: bool = True,
) -> pd.DataFrame:
    """Evaluate models on tasks, like `mixmim-bench run`, and return the scores of these runs.

    Finished runs are skipped, so the same call continues after an interruption. Records, leaderboards and
    plots are written to the results folder, where `mixmim-bench compare` and the other commands find them.

    Args:
        models: one or several: a name, `NAME@SIZE`, `NAME=PATH` of a checkpoint, the path of a model file, a
            network (see `wrap_model`), or what `wrap_model` returns. The keys of a mapping name networks.
        tasks: one or several: a name, glob, variant or path as for `--task`, the keyword arguments of
            `make_task`, or what it returns. The keys of a mapping name images of this session.
        protocols: names.
        suites: names of suites of tasks; without tasks and suites, as the command line.
        weights: 'auto', 'random', or a checkpoint, for models that bring none.
        preset: of hyper-parameters.
        layers: of the frozen features.
        settings: changed hyper-parameters, such as `{"finetune.epochs": 3}`.
        seeds: one or several.
        limit: images of each role, for a smoke run; 0: all.
        controls: add raw pixels, random weights, permuted labels and noise for probes.
        precision: of the backbone.
        resize: for evaluation: 'exact', 'fast' or 'reduced'.
        results: the folder of results.
        data_root: a folder with one folder per task, or a folder for each task.
        trust_task_code: whether Python code next to task files may run.
        device: a torch device.
        engine: of frozen features.
        threads: of the CPU.
        workers: processes that decode images.
        batch_size: images per forward pass.
        save_weights: save fine-tuned networks.
        report: write leaderboards, plots, the page and pictures of predictions.
        progress: print progress.

    Returns:
        One row per run and metric, with the columns of `results.csv` (see results/README.md), as fractions.
        Failed runs have no rows: they are named in a warning, and their records say why.

    Raises:
        BenchError: something in the arguments is wrong; nothing was run.
        KeyboardInterrupt: the runs were interrupted; finished ones are saved.
    """
    named_models, named_tasks = _named(models), _named(tasks)
    if workers is None and _of_session(models, tasks):
        workers = 0  # other processes may not be able to import what a session defines
    if precision == AUTO:
        precision = open_machine(device, precision, threads).precision
    selection = Selection(
        models=[_model(model, name) for name, model in named_models],
        tasks=[_task(task, name) for name, task in named_tasks],
        suites=_list(suites),
        protocols=_list(protocols),
        seeds=[seeds] if isinstance(seeds, int) else list(seeds),
        weights=str(weights),
        preset=preset,
        precision=precision,
        resize=resize,
        layers=layers,
        changes=dict(settings or {}),
        limit=limit,
        controls=controls,
        roots=find_roots(_roots(data_root), trust_task_code),
    )
    store = RunStore(Path(results))
    machine = partial(open_machine, device, precision, threads, batch_size, workers)
    console = Console(highlight=False, quiet=not progress)
    session = Session(selection, store, machine, console, engine, save_weights=save_weights)
    outcome = session.run()
    if report:
        report_session(session, console.print)
    if outcome.interrupted:
        raise KeyboardInterrupt
    for failed in outcome.failed:
        warnings.warn(
            f"{failed.model} · {failed.task} · {failed.protocol} failed: {failed.error}", stacklevel=2
        )
    if outcome.lost:
        warnings.warn(f"{counted(len(outcome.lost), 'result')} vanished from {results}", stacklevel=2)
    return to_long(session.records(), store.read_costs()).reset_index(drop=True)


def _named(values: Any) -> list[tuple[str, Any]]:
    """Return values with the names that a mapping gives them; one value is a list of itself."""
    if isinstance(values, Mapping) and not set(values) & {"train", "test"}:
        return list(values.items())
    several = isinstance(values, Sequence) and not isinstance(values, str)
    return [("", value) for value in (values if several else [values])]


def _of_session(*groups: Any) -> bool:
    """Return whether there are objects among models and tasks, and not only names."""
    return any(not isinstance(value, str | Path) for group in groups for _, value in _named(group))


def _list(values: str | Sequence[str]) -> list[str]:
    return [values] if isinstance(values, str) else list(values)


def _roots(data_root: Any) -> list[str]:
    if isinstance(data_root, Mapping):
        return [f"{task}={folder}" for task, folder in data_root.items()]
    return [str(data_root)] if str(data_root) else []


def _model(model: Any, name: str) -> str | ModelSpec:
    if isinstance(model, str | Path):
        return str(model)
    if isinstance(model, ModelSpec):
        return model
    if isinstance(model, nn.Module):
        return wrap_model(model, name or type(model).__name__)
    raise BenchError(f"a model is a name, a path, or a torch.nn.Module, not {type(model).__name__}")


def _task(task: Any, name: str) -> str | TaskSpec:
    if isinstance(task, str | Path):
        return str(task)
    if isinstance(task, TaskSpec):
        return task
    if isinstance(task, Mapping):
        return make_task(**{**({"name": name} if name else {}), **task})
    raise BenchError(f"a task is a name, a path, or images (see make_task), not {type(task).__name__}")


def wrap_model(
    network: nn.Module,
    name: str = "",
    *,
    classifier: str = "",
    image_size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    transform: Callable[[Any], Tensor] | None = None,
) -> ModelSpec:
    """Make a model of a network and its preprocessing, for `run_suite`.

    Its results are identified by its weights, by its code, with the functions that it uses, and by its
    preprocessing: after a change of one of them, runs are done again. The network itself is copied and not
    changed.

    Args:
        network: a timm model, or a module that maps normalised images (B, 3, H, W) to features (B, D), or to
            maps or tokens, which are averaged.
        name: in tables; by default that of the class.
        classifier: the name of the network's last layer, such as 'fc', if that is a classifier (`nn.Linear`):
            features are its inputs, and `own-head` evaluates it.
        image_size: side in pixels, or (height, width), for all tasks; by default that of the task, or timm's
            configuration, else 224.
        mean: of the channels, of pixels from 0 to 1; by default timm's configuration, else that of ImageNet.
        std: likewise.
        interpolation: 'bicubic', 'bilinear', …; by default timm's configuration, else 'bicubic'.
        crop_pct: share of the resized image that is cropped, for all tasks; by default likewise, else 0.875.
        crop_mode: 'center', 'squash' or 'border'.
        transform: instead of the above, a callable: PIL image (RGB) -> normalised tensor (3, H, W). Protocols
            that train the network cannot use it.

    Raises:
        BenchError: the network returns no features, or an argument is wrong.
    """
    name = name or type(network).__name__
    if not _NAME.fullmatch(name) or name in by_name(MODELS):
        raise BenchError(
            f"{name!r} cannot be the name of a model of yours: it "
            + (
                "is that of a registered one"
                if name in by_name(MODELS)
                else "may hold letters, digits and ._+-"
            )
        )
    given: dict[str, Any] = {}
    for key, value in (
        ("image_size", image_size),
        ("mean", mean),
        ("std", std),
        ("interpolation", interpolation),
        ("crop_pct", crop_pct),
        ("crop_mode", crop_mode),
    ):
        if value is not None:
            try:
                given["size" if key == "image_size" else key] = checked_preprocessing(key, value)
            except ValueError as error:
                raise BenchError(f"{name}: {key}: {error}") from None
    if transform is not None:
        if given:
            raise BenchError(f"{name}: give a transform or {' and '.join(given)}, not both")
        given = _of_transform(name, transform)
    config: Any = getattr(network, "pretrained_cfg", None)
    own = {**_PLAIN, **{key: value for key, value in dict(config or {}).items() if key in _PLAIN and value}}
    if "size" in given:
        own["input_size"] = (3, *given["size"])
    registered = register_network(network, name, own, classifier)
    return ModelSpec(
        name=name, arch=registered.arch, preprocessing=given, checkpoint=str(registered.checkpoint)
    )


def _of_transform(name: str, transform: Callable[[Any], Tensor]) -> dict[str, Any]:
    """Keep a transform for this process; return its key and the size (h, w) of what it returns."""
    from PIL import Image

    key = code_digest(transform)
    OBJECTS[key] = transform
    try:
        pixels = transform(Image.new("RGB", (320, 240)))
    except Exception as error:  # whatever a user's transform raises
        raise BenchError(f"{name}: its transform fails: {type(error).__name__}: {error}") from error
    if not isinstance(pixels, Tensor) or pixels.ndim != 3 or len(pixels) != 3:
        shape = tuple(pixels.shape) if hasattr(pixels, "shape") else type(pixels).__name__
        raise BenchError(f"{name}: its transform returns {shape}, not a tensor (3, H, W)")
    return {"transform": key, "size": list(pixels.shape[1:])}


def make_task(
    name: str,
    test: Any,
    train: Any = None,
    val: Any = None,
    *,
    classes: Sequence[str] = (),
    metrics: Sequence[str] = (),
    title: str = "",
    image_size: int = 0,
    forbid: Sequence[str] = (),
) -> TaskSpec:
    """Make a task of images in this session, for `run_suite`.

    Args:
        name: in tables.
        test: (images, labels) or a torch Dataset of PIL images and labels. Images are arrays of uint8
            (n, h, w), (n, h, w, 3) or (n, 3, h, w), or a list of PIL images; labels are (n,), or (n, K) of 0
            and 1 for several labels per image.
        train: likewise; without it, only `own-head` can be run.
        val: likewise; by default, a stratified tenth of train.
        classes: their names; by default, numbers.
        metrics: the first is ranked; by default `top1`, of several labels per image `mean_ap`.
        title: in plots; by default the name.
        image_size: side in pixels for all models; 0: each model's own.
        forbid: augmentations that would change a label: 'hflip'.

    Raises:
        BenchError: images or labels are wrong.
    """
    if not _NAME.fullmatch(name):
        raise BenchError(f"{name!r} cannot be the name of a task: it may hold letters, digits and ._+-")
    if val is not None and train is None:
        raise BenchError(f"{name}: val without train")
    given = {"train": train, "val": val, "test": test}
    parts = {role: part_of(role, data) for role, data in given.items() if data is not None}
    dimensions = {part.labels.ndim for part in parts.values()}
    if len(dimensions) != 1:
        raise BenchError(f"{name}: the labels of {' and '.join(parts)} are of different kinds")
    kind = CLASSIFICATION if dimensions == {1} else MULTILABEL
    metrics = tuple(metrics) or (("top1",) if kind == CLASSIFICATION else ("mean_ap",))
    for metric in metrics:
        if metric not in METRICS or kind not in METRICS[metric].kinds:
            known = [each for each in METRICS if kind in METRICS[each].kinds]
            raise BenchError(f"{name}: no metric {metric!r} for {kind}; {nearest(metric, known)}")
    labels = [part.labels for part in parts.values()]
    count = max(int(each.max()) + 1 if kind == CLASSIFICATION else each.shape[1] for each in labels)
    names = tuple(map(str, classes)) or tuple(map(str, range(max(2, count))))
    if len(names) < count or min(int(np.min(each)) for each in labels) < (
        0 if kind == CLASSIFICATION else -1
    ):
        raise BenchError(
            f"{name}: labels must be 0 to {len(names) - 1}, for {counted(len(names), 'class', 'classes')}"
        )
    split = {role: role for role in parts}
    if train is not None and val is None:
        split |= {"train": f"train[:{100 - _HELD_OUT}%]", "val": f"train[{100 - _HELD_OUT}%:]"}
    return TaskSpec(
        name=name,
        path=f"{name} (of a Python session)",
        version=1,
        kind=kind,
        title=title or name,
        num_classes=len(names),
        metrics=metrics,
        metric_versions={each: METRICS[each].version for each in metrics if METRICS[each].version > 1},
        suites=(),
        layouts=(LayoutSpec(name="memory:Memory", options={"key": hold(names, parts)}),),
        counts={},
        split=split,
        image_size=image_size,
        forbid=tuple(forbid),
    )
