"""Layers of a backbone: what is read in one pass, and that it stays what it was."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import seeded
import timm
import torch
from sklearn.datasets import load_digits

from mixmim_bench.data.images import Arrays, Part
from mixmim_bench.data.transforms import eval_transform
from mixmim_bench.errors import BenchError
from mixmim_bench.features import EXTRACTOR_VERSION
from mixmim_bench.features.check import resolve_layers
from mixmim_bench.features.engines.torch import TorchReader
from mixmim_bench.features.extract import extract
from mixmim_bench.features.layers import Taps, choose_layers
from mixmim_bench.machine import Machine
from mixmim_bench.specs import ModelSpec, Preprocessing

GOLDEN = Path(__file__).parent / "golden" / "features.json"


@torch.no_grad()
def read(network, layers, size=64):
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    return images, Taps(network.eval()).read(images, layers, nullcontext())


@pytest.mark.parametrize("window_size", [None, (14, 5, 3, 2)], ids=["whole windows", "padded windows"])
def test_stages_of_mixmim_are_means_of_their_tokens(tiny, window_size):
    network = tiny(depths=(1, 1, 3, 1), window_size=window_size)
    layers = ["own", "stage1", "stage2", "stage3", "stage4", "last4", "stage1+own"]
    images, found = read(network, layers)
    with torch.no_grad():
        _, stages = network.forward_intermediates(images, norm=True)
    for i, tokens in enumerate(stages, 1):
        torch.testing.assert_close(found[f"stage{i}"], tokens.mean((2, 3)))
    assert torch.equal(found["own"], found["stage4"])
    # the last four blocks: three of stage 3, and the last one behind the final norm
    assert found["last4"].shape == (3, 3 * 64 + 128)
    torch.testing.assert_close(found["last4"][:, 128:], torch.cat([found["stage3"], found["own"]], 1))
    assert torch.equal(found["stage1+own"], torch.cat([found["stage1"], found["own"]], 1))


def test_tokens_of_a_vit_are_class_tokens_and_patch_means():
    network = timm.create_model("test_vit", num_classes=0, img_size=64)
    images, found = read(network, ["own", "cls", "mean", "last4", "block2", "cls+mean"])
    with torch.no_grad():
        last, blocks = network.forward_intermediates(
            images, norm=True, output_fmt="NLC", return_prefix_tokens=True
        )
    assert torch.equal(found["own"], found["cls"]) and torch.equal(found["cls"], last[:, 0])
    torch.testing.assert_close(found["mean"], last[:, 1:].mean(1))
    class_tokens = [prefix[:, 0] for _, prefix in blocks[-4:]]
    torch.testing.assert_close(found["last4"], torch.cat(class_tokens, 1))
    torch.testing.assert_close(found["block2"], blocks[1][0].mean(1))


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        ("test_resnet", ["own", "stage1", "stage2", "stage3"]),
        ("test_convnext", ["own", "stage1", "stage2", "stage3", "last4"]),
        ("swin_tiny_patch4_window7_224", ["own", "stage1", "stage2", "stage3", "last4"]),
        ("mixer_s16_224", ["own", "mean", "last4"]),
        ("vit_small_patch14_reg4_dinov2", ["own", "cls", "mean", "last4"]),
        ("mixmim_large", ["own", "stage1", "stage2", "stage3", "last4"]),
    ],
)
def test_what_auto_tries(arch, names):
    with torch.device("meta"):
        network = timm.create_model(arch, num_classes=0)
        assert choose_layers(network, "auto") == names
        size = network.pretrained_cfg["input_size"][-1]
        found = Taps(network.eval()).read(torch.empty(2, 3, size, size), names, nullcontext())
    assert all(values.shape[0] == 2 and values.ndim == 2 for values in found.values())


def test_a_layer_that_is_not_there_brings_the_nearest():
    spec = ModelSpec(name="mixmim-b", arch="mixmim_base")
    with pytest.raises(BenchError, match="mixmim-b: no layer 'stge3' in MixMIM; did you mean stage3"):
        resolve_layers(spec, (64, 64), ["stge3"])
    with pytest.raises(BenchError, match="no layer 'cls' in MixMIM"):
        resolve_layers(spec, (64, 64), ["own+cls"])
    resolve_layers(spec, (64, 64), ["auto", "stage4", "last24"])


def test_reading_leaves_no_hook_behind(tiny):
    network = tiny()
    read(network, ["last4", "stage1"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def golden_features(tiny):
    """Features of real images by seeded weights: what EXTRACTOR_VERSION stands for."""
    network = tiny()
    network.load_state_dict(
        {
            name: value
            if name == "absolute_pos_embed"
            else torch.from_numpy(seeded.weights(name, tuple(value.shape), 0))
            for name, value in network.state_dict().items()
        }
    )
    network.reset_classifier(0)
    pixels = (load_digits().images[:6] * 15).astype(np.uint8)
    part = Part(np.arange(6).astype(str), np.zeros(6, np.int64), Arrays(pixels, "digits"))
    transform = eval_transform(
        Preprocessing(
            **{"size": (64, 64), "crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic"},
            **{"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        )
    )
    machine = Machine(device="cpu")
    layers = ("own", "stage1", "stage2", "stage3", "last4")
    return {
        layer: extract(TorchReader(network, machine), part, transform, machine, layer=layer).x
        for layer in layers
    }


def test_features_are_what_they_were(tiny):
    """If this fails and features were meant to change: raise EXTRACTOR_VERSION, and make the file anew.

    python -c "import sys; sys.path.insert(0, 'tests'); import test_features; test_features.write_golden()"
    """
    golden = json.loads(GOLDEN.read_text())
    assert golden["version"] == EXTRACTOR_VERSION
    for layer, values in seeded.digest(golden_features(tiny)).items():
        np.testing.assert_allclose(values, golden["features"][layer], rtol=1e-3, atol=1e-3, err_msg=layer)


def write_golden():
    """Write tests/golden/features.json."""
    import conftest

    features = seeded.digest(golden_features(conftest.make_tiny))
    GOLDEN.write_text(json.dumps({"version": EXTRACTOR_VERSION, "features": features}, indent=1) + "\n")
