"""Our network against OpenMMLab's, under the same weights: `pytest -m reference`."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import seeded
import timm
import torch
from environment import openmmlab_python

from mixmim_bench.errors import BenchError
from mixmim_bench.models.checkpoints import load_weights, read_checkpoint
from mixmim_bench.models.formats import convert
from mixmim_bench.models.pretraining import pretraining_model

pytestmark = pytest.mark.reference

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"


@pytest.fixture(scope="session")
def python(request):
    """The interpreter of an environment with OpenMMLab's packages, kept in pytest's cache."""
    return openmmlab_python(Path(request.config.cache.mkdir("openmmlab")))


@pytest.fixture(scope="session")
def computed(python, tmp_path_factory):
    """Make OpenMMLab's checkpoint and results of a mode and size, once each: (checkpoint, results)."""
    made = {}

    def compute(mode, arch):
        if (mode, arch) not in made:
            folder = tmp_path_factory.mktemp(f"{mode}-{arch}")
            subprocess.run(
                [python, HERE / "openmmlab.py", mode, arch, folder], check=True, capture_output=True
            )
            made[mode, arch] = folder
        folder = made[mode, arch]
        return folder / "openmmlab.pth", np.load(folder / "openmmlab.npz")

    return compute


def close(ours, theirs, tolerance=1e-4):
    np.testing.assert_allclose(ours.detach().numpy().reshape(theirs.shape), theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", ["base", "large"])
def test_logits_features_and_every_stage_are_those_of_openmmlab(computed, size, tmp_path):
    path, theirs = computed("classifier", size)
    network = timm.create_model(f"mixmim_{size}").eval()
    assert load_weights(network, path, network.pretrained_cfg["architecture"]) == []
    images = torch.from_numpy(seeded.images(2, 224, 0))
    with torch.no_grad():
        close(network(images), theirs["logits"])
        close(network.forward_head(network.forward_features(images), pre_logits=True), theirs["features"])
        stages = network.forward_intermediates(images, intermediates_only=True, output_fmt="NHWC", norm=False)
        for stage, tokens in enumerate(stages):
            close(tokens, theirs[f"stage{stage}"])

        # the same network in the released layout
        torch.save({"model": network.state_dict()}, tmp_path / "released.pth")
        again = timm.create_model(f"mixmim_{size}").eval()
        load_weights(again, tmp_path / "released.pth", f"mixmim_{size}")
        assert torch.equal(again(images), network(images))


def test_the_order_of_merged_neighbours_matters(computed):
    """Without the permutation a checkpoint loads without complaint and computes something else."""
    path, theirs = computed("classifier", "base")
    network = timm.create_model("mixmim_base").eval()
    state = convert(read_checkpoint(path), network)
    merging = "layers.0.downsample.reduction.weight"
    state[merging] = read_checkpoint(path)["state_dict"][f"backbone.{merging}"]
    network.load_state_dict(state)
    with torch.no_grad():
        off = (network(torch.from_numpy(seeded.images(2, 224, 0))).numpy() - theirs["logits"]).std()
    assert off > 0.1 * theirs["logits"].std()


@pytest.mark.parametrize("size", ["base", "large"])
def test_pretraining_gives_the_same_loss_and_gradients(computed, size):
    path, theirs = computed("pretraining", size)
    network = pretraining_model(f"mixmim_{size}", decoder_norm_eps=1e-6)
    assert load_weights(network, path, f"mixmim_{size}") == []
    mask = torch.from_numpy(theirs["mask"]).view(7, 7)
    assert mask.sum() == 24
    result = network(torch.from_numpy(seeded.images(3, 224, 1)), mask)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(float(theirs["loss"]), abs=1e-5)
    close(network.patch_embed.proj.weight.grad, theirs["gradient_first"], 1e-7)
    close(network.decoder_pred.bias.grad, theirs["gradient_last"], 1e-7)


def test_an_encoder_takes_the_pretraining_checkpoint(computed):
    path, _ = computed("pretraining", "base")
    load_weights(timm.create_model("mixmim_base", num_classes=0), path, "mixmim_base")
    with pytest.raises(BenchError, match="these are weights of mixmim_base"):
        load_weights(timm.create_model("mixmim_large", num_classes=0), path, "mixmim_large")


@pytest.mark.parametrize("mode", ["classifier", "pretraining"])
def test_the_golden_numbers_are_those_of_openmmlab(computed, mode):
    path, _ = computed(mode, "base")
    now = json.loads((path.parent / "digest.json").read_text())
    golden = json.loads((GOLDEN / f"openmmlab_{mode}_base.json").read_text())
    assert now.keys() == golden.keys()
    for name in now:
        np.testing.assert_allclose(now[name], golden[name], rtol=1e-4, atol=1e-5, err_msg=name)
