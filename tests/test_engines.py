"""Inference engines: the same features, by the same layers, or torch."""

import dataclasses
import json
import os
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
import timm
import torch
from test_store import bench_of
from timm.models import register_model

from mixmim_bench.cost import measure
from mixmim_bench.errors import BenchError
from mixmim_bench.features import LOGITS, engines
from mixmim_bench.features.engines import (
    PAYS_FROM_S,
    TORCH_GMACS_PER_S,
    Source,
    Unsuitable,
    check_engine,
    choose_engine,
    converted,
    open_reader,
)
from mixmim_bench.features.engines.torch import TorchReader
from mixmim_bench.features.keys import entry_of
from mixmim_bench.features.layers import Taps
from mixmim_bench.features.store import FeatureStore
from mixmim_bench.inference import demo_image
from mixmim_bench.machine import Machine, computes_in_bfloat16
from mixmim_bench.protocols.workbench import Shelf
from mixmim_bench.registry import find_model
from mixmim_bench.specs import COMPILE, OPENVINO, TORCH
from mixmim_bench.suite.taskfile import read_task

pytestmark = pytest.mark.skipif(not engines.is_installed(), reason="OpenVINO is not installed")
bfloat16 = pytest.mark.skipif(not computes_in_bfloat16("cpu"), reason="the processor has no bfloat16")

CPU, CPU_BFLOAT16 = Machine(device="cpu"), Machine(device="cpu", precision="bfloat16")
NETWORKS = ["mixmim", "test_vit", "test_vit4", "test_resnet", "test_efficientnet", "test_convnext"]
SIZES = {"mixmim": 64}  # others: 160


@pytest.fixture
def network(tiny):
    """Build a small network in eval mode, with a classifier."""

    def build(name="mixmim"):
        if name == "mixmim":
            return tiny().eval()
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=7).eval()

    return build


def photographs(count, size, seed=0):
    """Smooth images, more like photographs than noise."""
    noise = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, size=(size, size), mode="bicubic")


def source_of(network, name):
    """Describe a network to an engine."""
    return Source(
        key={"name": name},
        build=lambda: network,
        layers=[*Taps(network).names(), LOGITS],
        sample=lambda: photographs(4, SIZES.get(name, 160)),
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_float32_features_agree(network, name):
    original = network(name)
    layers = [*Taps(original).names(), LOGITS, "own+logits"]
    images = photographs(5, SIZES.get(name, 160), seed=1)
    expected = TorchReader(original, CPU).read(images, layers)
    computed = open_reader(OPENVINO, source_of(original, name), CPU).read(images, layers)
    assert list(computed) == layers
    for layer, values in expected.items():
        np.testing.assert_allclose(computed[layer], values, atol=2e-5 * float(values.abs().max()))


@bfloat16
@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_features_agree_and_are_not_float32(network, name):
    original = network(name)
    images = photographs(5, SIZES.get(name, 160), seed=1)
    exact = TorchReader(original, CPU).read(images, ["own"])["own"]
    computed = open_reader(OPENVINO, source_of(original, name), CPU_BFLOAT16).read(images, ["own"])["own"]
    assert torch.nn.functional.cosine_similarity(computed, exact).min() > 0.999
    assert (computed - exact).abs().max() > 1e-5 * exact.abs().max()


def test_the_same_bits_each_time(network):
    images = photographs(3, 64, seed=1)
    source = source_of(network(), "mixmim")
    first, second = (open_reader(OPENVINO, source, CPU).read(images, ["own", "last4"]) for _ in range(2))
    assert all(torch.equal(first[layer], second[layer]) for layer in first)


@bfloat16
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_in_bfloat16_do_not_change_features(network, name):
    """Autocast rounds the weights in each pass; rounding them once gives the same bits."""
    images = photographs(5, SIZES.get(name, 160), seed=1)
    layers = [*Taps(network(name)).names(), LOGITS]
    expected = TorchReader(network(name), CPU_BFLOAT16).read(images, layers)
    owned = network(name)
    reader = TorchReader(owned, CPU_BFLOAT16, owned=True)
    for _ in range(2):
        values = reader.read(images, layers)
        assert all(torch.equal(values[layer], expected[layer]) for layer in layers)
    kinds = {
        type(m): m.weight.dtype for m in owned.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)
    }
    assert torch.bfloat16 in kinds.values()
    assert owned.get_classifier().weight.dtype == torch.float32  # heads run in float32


@pytest.mark.slow  # a minute of compiling
def test_compiled_features_agree(network):
    original = network()
    layers = ["own", "stage2", "last4"]
    images = photographs(5, 64, seed=1)
    source = dataclasses.replace(source_of(original, "mixmim"), layers=layers)
    computed = open_reader(COMPILE, source, CPU).read(images, layers)
    for layer, values in TorchReader(original, CPU).read(images, layers).items():
        np.testing.assert_allclose(computed[layer], values, atol=2e-5 * float(values.abs().max()))


# -- what cannot be converted -------------------------------------------------------------------------


class Branching(torch.nn.Module):
    """Computes with a number that depends on the images, which tracing takes for a constant."""

    def forward_features(self, x):
        return x.mean((2, 3)) + float(x.std())

    def forward_head(self, x, **_):
        return x


class Failing(Branching):
    """Cannot be traced."""

    def forward_features(self, x):
        return (
            torch.from_numpy(np.fft.fft(x.detach().numpy()).real.astype(np.float32))
            .mean((2, 3))
            .unique()[None]
        )


def branching_source(builds, kind=Branching):
    def build():
        builds.append(None)
        return kind()

    return Source({"name": kind.__name__}, build, ["own"], lambda: photographs(4, 16))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Branching, "own differs by .* of the largest value"), (Failing, "cannot convert|shape")],
)
def test_a_network_that_is_converted_wrongly_is_refused_for_good(kind, reason):
    builds = []
    for _ in range(2):
        with pytest.raises(Unsuitable, match=reason):
            open_reader(OPENVINO, branching_source(builds, kind), CPU)
    assert len(builds) == 1


def test_no_readable_image_to_compare_on_is_not_remembered():
    source = branching_source([])
    for _ in range(2):
        with pytest.raises(BenchError, match="none of the images"):
            open_reader(OPENVINO, dataclasses.replace(source, sample=lambda: torch.empty(0)), CPU)
    assert not list(converted.folder().glob("*.json"))


@pytest.mark.parametrize("file", ["network.bin", "network.xml", "check.npz", "whole.json"])
def test_a_damaged_network_is_converted_again(network, file):
    source = source_of(network(), "mixmim")
    before = open_reader(OPENVINO, source, CPU).read(photographs(2, 64), ["own"])["own"]
    (path,) = converted.folder().glob(f"*/{file}")
    path.write_bytes(path.read_bytes()[:-7])
    after = open_reader(OPENVINO, source, CPU).read(photographs(2, 64), ["own"])["own"]
    assert torch.equal(before, after)


def test_other_weights_in_a_converted_network_are_refused(network):
    source = source_of(network(), "mixmim")
    open_reader(OPENVINO, source, CPU)
    (path,) = converted.folder().glob("*/network.bin")
    weights = np.fromfile(path, np.float32)
    np.where((abs(weights) > 1e-3) & (abs(weights) < 1), 2 * weights, weights).tofile(path)
    with pytest.raises(Unsuitable, match="computes other features"):
        open_reader(OPENVINO, source, CPU)


# -- the choice ---------------------------------------------------------------------------------------


def test_auto_depends_on_work_and_machine(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    pays = PAYS_FROM_S * CPU.threads * TORCH_GMACS_PER_S["float32"]
    assert choose_engine(CPU, 1.01 * pays) == OPENVINO
    assert choose_engine(CPU, 0.99 * pays) == TORCH
    assert choose_engine(Machine(device="cuda"), 1e9) == TORCH
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert choose_engine(CPU, 1e9) == TORCH
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("mixmim_bench.machine.computes_in_bfloat16", lambda _: False)
    assert choose_engine(CPU_BFLOAT16, 1e9) == TORCH
    monkeypatch.setattr(engines, "is_installed", lambda: False)
    assert choose_engine(CPU, 1e9) == TORCH


def test_an_engine_that_is_not_there_is_an_error(monkeypatch, run, tmp_path):
    with pytest.raises(BenchError, match="computes on a CPU, not on cuda; use --engine torch"):
        check_engine(OPENVINO, Machine(device="cuda"))
    monkeypatch.setattr(engines, "is_installed", lambda: False)
    command = ("run", "-m", "test_vit", "-t", "digits", "-p", "knn", "--results", tmp_path)
    result = run(*command, "--engine", "openvino", code=2)
    assert "OpenVINO is not installed; `pip install openvino`, or use --engine torch" in result.output
    assert "finished" not in run(*command).output  # 'auto' does without


def test_torch_has_the_keys_of_before_and_openvino_its_own(my_task):
    bench, splits = bench_of(read_task(my_task))
    made_by = entry_of(bench.run, splits["val"]).made_by
    assert "engine" not in made_by
    other = entry_of(dataclasses.replace(bench.run, engine=OPENVINO), splits["val"])
    assert other.made_by == {**made_by, "engine": "openvino"}
    assert bench.run.run_id == dataclasses.replace(bench.run, engine=OPENVINO).run_id


# -- in the suite and for single images ---------------------------------------------------------------


def records(results):
    return [json.loads(path.read_text()) for path in sorted((results / "runs").glob("*.json"))]


def test_a_suite_runs_on_openvino_and_resumes(run, my_task, tmp_path):
    command = ("run", "-m", "test_vit", "--weights", "random", "-t", my_task, "--layers", "auto")
    ours = tmp_path / "ours"
    run(*command, "-p", "knn", "--engine", "openvino", "--results", ours)
    (first,) = records(ours)
    assert first["provenance"]["engine"].startswith("openvino 20")
    costs = [json.loads(path.read_text()) for path in (ours / "costs").glob("*.json")]
    assert {cost["engine"] for cost in costs} == {first["provenance"]["engine"]}
    assert set(first["costs"].values()) == {path.stem for path in (ours / "costs").glob("*.json")}
    # 'auto' takes the features that are there, and what was measured
    assert "measuring" not in run(*command, "-p", "knn", "-p", "linear", "--results", ours).output
    assert {record["provenance"]["engine"] for record in records(ours)} == {first["provenance"]["engine"]}
    assert {entry.made_by["engine"] for entry in FeatureStore().entries()} == {"openvino"}
    theirs = tmp_path / "theirs"
    run(*command, "-p", "knn", "--engine", "torch", "--results", theirs)
    (other,) = records(theirs)
    assert other["provenance"]["engine"] == f"torch {metadata.version('torch')}"
    assert other["run_id"] == first["run_id"]
    assert other["timings"]["extract_s"] > 0
    assert other["scores"] == first["scores"]
    assert not set(other["costs"].values()) & set(first["costs"].values())


@register_model
def branching(pretrained=False, **kwargs):  # noqa: ARG001 (timm passes it)
    """A network that OpenVINO converts wrongly."""
    return BranchingVit(timm.create_model("test_vit", **kwargs))


class BranchingVit(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network
        self.num_features, self.num_classes = network.num_features, network.num_classes
        self.feature_info = ()

    def forward_features(self, x):
        spread = 0.0 if x.is_meta else float(x.std())
        return self.network.forward_features(x) * (1 + spread)

    def forward_head(self, x, pre_logits=False):
        return self.network.forward_head(x, pre_logits=pre_logits)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def test_what_an_engine_cannot_compute_is_left_to_torch(run, my_task, tmp_path, monkeypatch):
    config = timm.models.get_pretrained_cfg("test_vit")
    monkeypatch.setattr("timm.models.get_pretrained_cfg", lambda *_, **__: config)
    command = ("run", "-m", "branching", "--weights", "random", "-t", my_task, "-p", "knn")
    output = run(*command, "--engine", "openvino", "--results", tmp_path).output
    assert output.count("branching: features are computed by torch: OpenVINO computes other features") == 1
    (record,) = records(tmp_path)
    assert record["provenance"]["engine"].startswith("torch")
    assert any("features are computed by torch" in note for note in record["notes"])


def test_embed_with_both(run, tmp_path):
    features = {}
    for engine in (TORCH, OPENVINO):
        out = tmp_path / f"{engine}.npz"
        run("embed", demo_image(), "--out", out, "-m", "test_vit", "--weights", "random", "--engine", engine)
        features[engine] = np.load(out)["features"]
    np.testing.assert_allclose(features[OPENVINO], features[TORCH], atol=1e-5)
    assert not np.array_equal(features[OPENVINO], features[TORCH])


def test_costs_are_those_of_the_engine():
    cost = measure(find_model("test_vit"), (32, 32), CPU, OPENVINO)
    other = measure(find_model("test_vit"), (32, 32), CPU)
    assert (cost.gmacs, cost.params_m, cost.batch_size) == (other.gmacs, other.params_m, other.batch_size)
    assert cost.engine.startswith("openvino")
    assert other.engine.startswith("torch")
    assert cost.images_per_s > 0


# -- no telemetry -------------------------------------------------------------------------------------

CONVERT = """
import socket, sys
tried = []
def refuse(*arguments, **_):
    tried.append(arguments)
    raise OSError("refused")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
import torch
from pathlib import Path
if "plain" in sys.argv:
    import openvino
    openvino.convert_model(torch.nn.Linear(2, 2), example_input=torch.ones(1, 2))
    import openvino_telemetry
    openvino_telemetry.Telemetry("project", "0", "tid").send_event("a", "b", "c")
else:
    import timm
    from mixmim_bench.features.engines.converted import Converted
    from mixmim_bench.features.engines.openvino import convert
    into = Converted(Path(sys.argv[1]), {})
    into.path.mkdir()
    convert(timm.create_model("test_vit", num_classes=0), ["own"], torch.randn(4, 3, 160, 160), into)
import time
time.sleep(1)  # it sends from a thread
print(len(tried), sorted(path.name for path in Path.home().rglob("*") if path.is_file()))
"""


@pytest.mark.parametrize("plain", [False, True])
def test_a_conversion_reports_nothing_to_anyone(tmp_path, plain):
    """With a clean home and without CI set, since OpenVINO's telemetry would be off there."""
    home = tmp_path / "home"
    home.mkdir()
    kept = ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
    environment = {name: os.environ[name] for name in kept if name in os.environ} | {"HOME": str(home)}
    command = [sys.executable, "-c", CONVERT, *(["plain"] if plain else [str(tmp_path / "made")])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    tried, _, files = done.stdout.strip().splitlines()[-1].partition(" ")
    if plain:  # else this test shows nothing
        assert int(tried) or "openvino_ga_cid" in files
    else:
        assert int(tried) == 0
        assert files == "[]"


def test_runs_that_read_other_layers_open_a_network_that_has_them(my_task):
    """One shelf, as in a suite with `knn` on the own layer and another protocol on several."""
    shelf = Shelf()
    for layer in ("own", "last4"):
        bench, splits = bench_of(read_task(my_task))
        protocol = {**bench.run.protocol, "layers": layer}
        bench.run = dataclasses.replace(bench.run, engine=OPENVINO, protocol=protocol)
        bench.shelf = shelf
        assert list(bench.features_of_layers(splits["val"], [layer])) == [layer]


def test_auto_takes_openvino_in_a_suite_where_it_pays(run, my_task, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "PAYS_FROM_S", 0.0)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    run("run", "-m", "test_vit", "--weights", "random", "-t", my_task, "-p", "knn", "--results", tmp_path)
    (record,) = records(tmp_path)
    assert record["provenance"]["engine"].startswith("openvino")


def test_what_a_killed_conversion_left_is_removed(network):
    source = source_of(network(), "mixmim")
    open_reader(OPENVINO, source, CPU)
    (whole,) = converted.converted_networks()
    left = whole.path.with_name(f".{whole.key}")
    whole.path.rename(left)  # as a kill before the last step would leave it
    open_reader(OPENVINO, source, CPU)
    assert not left.exists()
    assert [each.key for each in converted.converted_networks()] == [whole.key]
