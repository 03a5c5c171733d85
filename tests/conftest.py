"""What the tests share: small networks, small real images, and the suite run as a user would."""

import dataclasses
import functools
import hashlib
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import children
import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner, Result
from PIL import Image
from sklearn.datasets import load_digits

import mixmim_bench.models  # noqa: F401 (registers the models)
from mixmim_bench import cost
from mixmim_bench.atomic import write_whole
from mixmim_bench.cli import main
from mixmim_bench.counting import Count, count_on_meta
from mixmim_bench.data.layouts import embedded, scenes
from mixmim_bench.machine import Machine, measure_matmul_peak
from mixmim_bench.registry import find_model
from mixmim_bench.report.redraw import Job
from mixmim_bench.report.style import STYLE
from mixmim_bench.specs import TORCH, Cost, ModelSpec
from mixmim_bench.suite.records import RunStore

TINY = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8), "num_classes": 7}
LONGEST = (  # the files whose tests take longest together; those that wait beside those that compute
    *("openmmlab", "timm", "cluster", "dense", "fleet", "engines", "processes", "training", "together"),
    *("suite", "python", "own_things", "golden", "page", "show", "controls"),
)
DRAWING = tuple(
    f"test_{name}.py" for name in ("colours", "drawing", "numbers", "plots", "published", "report")
)

REPORTS = tuple(f"test_{name}.py" for name in ("bundles", "page", "report", "show", "suite", "tables"))


def pytest_configure(config: pytest.Config) -> None:
    """Give the workers of pytest-xdist, and what they start, one thread each: they share the cores."""
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest, so that no worker ends long after the others."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's cache and settings out of the tests."""
    monkeypatch.setenv("MIXMIM_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("MIXMIM_BENCH_OFFLINE", "1")
    monkeypatch.delenv("MIXMIM_BENCH_DATA", raising=False)
    config = tmp_path_factory.mktemp("config") / "config.toml"
    config.write_text("")
    monkeypatch.setenv("MIXMIM_BENCH_CONFIG", str(config))


@pytest.fixture(scope="session", autouse=True)
def _embedded_images_once() -> Iterator[None]:
    """Parse the images that travel in packages once a session: those of MNIST are text, and take a second."""
    with pytest.MonkeyPatch.context() as patch:
        for name, load in embedded.LOADERS.items():
            patch.setitem(embedded.LOADERS, name, functools.cache(load))
        yield


@pytest.fixture(scope="session", autouse=True)
def _scenes_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compose the scenes once a session; each test that reads them has its own copy in its cache folder."""
    composed = tmp_path_factory.mktemp("scenes") / "composed"

    def write(folder: Path) -> None:
        if not composed.exists():
            real(composed)
        shutil.copytree(composed, folder, dirs_exist_ok=True)

    real = scenes.write_scenes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "write_scenes", write)
        yield


class Costs:
    """What models cost, really counted and measured, but once a session and not for each results folder."""

    def __init__(self, folder: Path) -> None:
        self.store = RunStore(folder)
        self.store.prepare()
        self.counts: dict[tuple[str, str, tuple[int, int]], Count] = {}

    def count_on_meta(self, model: ModelSpec, image_size: tuple[int, int]) -> Count:
        """Count, or give what was counted."""
        key = (model.arch, str(model.kwargs), image_size)
        if key not in self.counts:
            self.counts[key] = count_on_meta(model, image_size)
        return self.counts[key]

    def measure(
        self, model: ModelSpec, image_size: tuple[int, int], machine: Machine, engine: str = TORCH
    ) -> Cost:
        """Measure, or give what was measured."""
        key = Cost.key(model.arch, model.kwargs, image_size, machine.precision, machine.describe(), engine)
        known = self.store.read_costs()
        if key not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cost, "_run_in_child", _soon)
                known[key] = cost.measure(model, image_size, machine, engine)
            self.store.save_cost(key, known[key])
        return dataclasses.replace(known[key], model=model.name)

    def lend(self, results: Path) -> None:
        """Put the costs into a results folder, for runs in processes of their own."""
        for size in ((160, 160), (32, 32)):
            self.measure(find_model("test_vit"), size, Machine(device="cpu"))
        shutil.copytree(self.store.costs, results / "costs", dirs_exist_ok=True)

    def take(self, results: Path) -> None:
        """Keep what a run in a process of its own has measured."""
        for key, measured in RunStore(results).read_costs().items():
            self.store.save_cost(key, measured)


_in_child = cost._run_in_child


def _soon(model: ModelSpec, step: str, request: dict[str, Any]) -> dict[str, Any]:
    """Do a step of a measurement in a process that need not import torch, and time few batches."""
    try:
        return children.computed(_few, step, request)
    except EOFError:  # it has failed, and will say why
        return _in_child(model, step, request)


def _few(step: str, request: dict[str, Any]) -> dict[str, Any]:
    return cost._convert(request) if step == "convert" else cost._measure(request, repeats=2, seconds=1.0)


@pytest.fixture(scope="session")
def costs(tmp_path_factory: pytest.TempPathFactory) -> Costs:
    """Costs of this session, shared by the workers of pytest-xdist."""
    own = tmp_path_factory.getbasetemp()
    return Costs((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "measured")


@pytest.fixture(scope="session", autouse=True)
def _costs_once(costs: Costs) -> Iterator[None]:
    """Let commands in this process count and measure a model at a size, and the machine, once a session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mixmim_bench.suite.doing.measure", costs.measure)
        patch.setattr("mixmim_bench.counting.count_on_meta", costs.count_on_meta)
        patch.setattr("mixmim_bench.machine.measure_matmul_peak", functools.cache(measure_matmul_peak))
        yield


_DRAWN: dict[tuple[str, str], bytes] = {}


@pytest.fixture(scope="module", autouse=True)
def _figures_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let commands in this process draw a figure once a session, except in tests of drawing."""
    real = Job.draw

    def draw(job: Job) -> None:
        values = hashlib.sha256(pickle.dumps((job.drawn, job.caption))).hexdigest()
        if not all((values, path.suffix) in _DRAWN for path in job.paths):
            real(job)
            _DRAWN.update(((values, path.suffix), path.read_bytes()) for path in job.paths)
        else:
            for path in job.paths:
                write_whole(path, _DRAWN[values, path.suffix])

    with pytest.MonkeyPatch.context() as patch:
        if request.path.name not in DRAWING:
            patch.setattr(Job, "draw", draw)
            patch.setitem(STYLE, "pdf.fonttype", 3)  # embedding TrueType fonts takes half of the time
        yield


def make_tiny(seed: int = 0, **kwargs: object) -> torch.nn.Module:
    """Build a small MixMIM with weights that make its layers matter."""
    torch.manual_seed(seed)
    model = timm.create_model("mixmim_base", **{"img_size": 64, **TINY, **kwargs})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture
def tiny() -> Callable[..., torch.nn.Module]:
    """Build a small MixMIM."""
    return make_tiny


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Callable[..., Result]:
    """Run a command of mixmim-bench in this process; `run` reports in files of REPORTS, or with --report."""
    silent = request.path.name not in REPORTS

    def invoke(*args: object, code: int = 0, input: bytes | None = None) -> Result:
        words = [str(arg) for arg in args]
        if silent and words[0] == "run" and not {"--report", "--print-suite"} & set(words):
            words.append("--no-report")
        result = CliRunner().invoke(main, words, input=input)
        assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
        return result

    return invoke


scanned_digits = functools.cache(load_digits)


def write_digits(folder: Path, per_class: int, classes: int = 3, start: int = 0) -> None:
    """Write real digits as PNG files into class folders."""
    data = scanned_digits()
    for label in range(classes):
        target = folder / f"digit {label}"
        target.mkdir(parents=True, exist_ok=True)
        rows = np.flatnonzero(data.target == label)[start : start + per_class]
        for row in rows:
            pixels = (data.images[row] * 15.9).astype(np.uint8)
            Image.fromarray(pixels).resize((16, 16)).save(target / f"{row:04d}.png")


TASK = """\
schema = 1
version = 1
kind = "classification"
title = "My digits"
num_classes = 3
metrics = ["top1"]

[data]
layouts = ["folder:ImageFolder"]
root = "images"

[image]
size = 32

[split]
train = "train[:80%]"
val = "train[80%:]"
test = "val"

[recipe.finetune]
epochs = 2
batch_size = 8
warmup_epochs = 0.5
"""


@pytest.fixture
def my_task(tmp_path: Path) -> Path:
    """A user's own task: a TOML file and an image folder beside it."""
    write_digits(tmp_path / "images" / "train", per_class=20)
    write_digits(tmp_path / "images" / "val", per_class=10, start=20)
    path = tmp_path / "mine.toml"
    path.write_text(TASK)
    return path
