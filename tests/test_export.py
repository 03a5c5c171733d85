"""Exports: each form is loaded by the program it is for and computes the same."""

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from conftest import TINY

from mixmim_bench import get_model
from mixmim_bench.errors import BenchError
from mixmim_bench.export import export_model
from mixmim_bench.inference import ReadyModel
from mixmim_bench.models.checkpoints import load_weights
from mixmim_bench.specs import ModelSpec, Weights


@pytest.fixture
def small(tiny):
    """A small MixMIM as `get_model` gives it."""
    spec = ModelSpec(name="small", arch="mixmim_base", kwargs=TINY)
    return ReadyModel(tiny().eval(), spec, Weights(kind="random", name="seeded"), (64, 64)).eval()


def outputs(model, batch):
    images = torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        return images, model.network(images)


def test_safetensors_hold_the_released_names(small, tmp_path):
    assert export_model(small, "safetensors", tmp_path / "m.safetensors") == 0.0
    fresh = timm.create_model("mixmim_base", img_size=64, **TINY).eval()
    assert load_weights(fresh, tmp_path / "m.safetensors", "mixmim_base") == []
    images, expected = outputs(small, 2)
    with torch.no_grad():
        assert torch.equal(fresh(images), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_torch_export_takes_any_batch(small, tmp_path):
    assert export_model(small, "torch-export", tmp_path / "m.pt2") < 1e-4
    program = torch.export.load(tmp_path / "m.pt2").module()
    for batch in (1, 2, 5):
        images, expected = outputs(small, batch)
        torch.testing.assert_close(program(images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("features", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_onnx_takes_any_batch(small, tmp_path, features):
    assert export_model(small, "onnx", tmp_path / "m.onnx", features) < 1e-3
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        images, expected = outputs(small, batch)
        (found,) = session.run(None, {"images": images.numpy()})
        assert found.shape == (batch, 128 if features else 7)
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.slow
def test_larger_onnx_weights_stand_beside_the_file(small, tmp_path, monkeypatch):
    monkeypatch.setattr("mixmim_bench.export.IN_ONE_FILE", 1000)
    export_model(small, "onnx", tmp_path / "m.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    images, expected = outputs(small, 3)
    np.testing.assert_allclose(session.run(None, {"images": images.numpy()})[0], expected, atol=1e-3)


@pytest.mark.parametrize("form", ["safetensors", "torch-export"])
def test_any_timm_model_is_exported(form, tmp_path):
    suffix = {"safetensors": "safetensors", "torch-export": "pt2"}[form]
    assert export_model(get_model("test_resnet"), form, tmp_path / f"m.{suffix}") < 1e-3


def test_an_export_that_is_not_the_model_is_refused(small, tmp_path, monkeypatch):
    def spoilt(network, path, arch):
        load_weights(network, path, arch)
        network.head.bias.data += 1.0

    monkeypatch.setattr("mixmim_bench.export.load_weights", spoilt)
    with pytest.raises(BenchError, match="the export does not match the model"):
        export_model(small, "safetensors", tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("m.bin", "safetensors file names must end in .safetensors"),
        ("none/m.safetensors", "no such folder"),
    ],
)
def test_a_place_that_will_not_do_is_told(small, tmp_path, name, told):
    with pytest.raises(BenchError, match=told):
        export_model(small, "safetensors", tmp_path / name)


def test_the_command_exports(run, tmp_path):
    args = ("export", "-m", "test_vit", "--weights", "random", "--format", "safetensors")
    said = run(*args, "--out", tmp_path / "m.safetensors").output
    assert "outputs differ by at most 0.0e+00" in said
