"""Checkpoints: every published format is recognised and loaded, and nothing else is."""

import decimal
import json
import re
import shutil
import warnings
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import seeded
import timm
import torch
import torch.nn.functional as F
from conftest import TINY as SMALL
from safetensors.torch import save_file

from mixmim_bench.errors import BenchError
from mixmim_bench.models.build import build, create
from mixmim_bench.models.checkpoints import load_weights
from mixmim_bench.models.formats import convert
from mixmim_bench.models.positions import resize_positions, sincos_positions
from mixmim_bench.models.pretraining import pretraining_model
from mixmim_bench.specs import ModelSpec, Weights
from mixmim_bench.weights.find import resolve_weights

TINY = ModelSpec(name="tiny", arch="mixmim_base", kwargs=SMALL)

OPENMMLAB = {
    "patch_embed.proj.": "patch_embed.projection.",
    ".norm1.": ".ln1.",
    ".norm2.": ".ln2.",
    ".mlp.fc1.": ".ffn.layers.0.0.",
    ".mlp.fc2.": ".ffn.layers.1.",
}


def name_in_openmmlab(key):
    """Name a tensor of ours as OpenMMLab's checkpoints do."""
    for ours, theirs in OPENMMLAB.items():
        key = key.replace(ours, theirs)
    if key.startswith("head."):
        return key.replace("head.", "head.fc.")
    if key.startswith(("mask_token", "decoder_")):
        return "neck." + key.replace("decoder_norm.", "ln1.")
    return f"backbone.{key}"


def in_openmmlab_form(state):
    """Write a state as OpenMMLab does: its names, and its order of the neighbours to merge."""
    theirs = {}
    for key, value in state.items():
        if ".downsample." in key:
            width = value.shape[-1] // 4
            moved = torch.empty_like(value)
            for channel in range(width):
                for row in (0, 1):
                    for column in (0, 1):
                        moved[..., 4 * channel + 2 * row + column] = value[
                            ..., (2 * column + row) * width + channel
                        ]
            value = moved
        theirs[name_in_openmmlab(key)] = value
    return theirs


FORMS = {
    "bare": lambda s: s,
    "released, fine-tuned": lambda s: {
        "model": s,
        "epoch": 99,
        "args": Namespace(lr=0.1, model="mixmim_base"),
    },
    "openmmlab": lambda s: {"meta": {"epoch": 100}, "state_dict": in_openmmlab_form(s)},
    "ddp": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "compiled in ddp": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "timm's ema": lambda s: {"state_dict_ema": {f"module.{k}": v for k, v in s.items()}},
    "torch's averaged model": lambda s: {
        "n_averaged": torch.tensor(3),
        **{f"module.{k}": v for k, v in s.items()},
    },
    "with computed indices": lambda s: {
        "model": {**s, "layers.0.blocks.0.attn.relative_position_index": torch.zeros(4, 4)}
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_form_of_a_checkpoint_gives_the_same_network(tiny, tmp_path, form, suffix):
    saved = tiny().eval()
    content = FORMS[form](saved.state_dict())
    if suffix == ".safetensors":
        content = next(
            (content[k] for k in ("model", "state_dict", "state_dict_ema") if k in content), content
        )
        save_file({k: v.contiguous().clone() for k, v in content.items()}, tmp_path / "file.safetensors")
    else:
        torch.save(content, tmp_path / "file.pth")
    loaded = tiny(seed=1).eval()
    load_weights(loaded, tmp_path / f"file{suffix}", "mixmim_base")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), saved(images))


@pytest.mark.parametrize("openmmlab", [False, True])
def test_a_pretraining_checkpoint_fills_an_encoder(tmp_path, openmmlab):
    kwargs = {k: v for k, v in SMALL.items() if k != "num_classes"}
    saved = pretraining_model(
        "mixmim_base", img_size=64, decoder_dim=32, decoder_num_heads=4, **kwargs
    ).eval()
    state = saved.state_dict()
    if openmmlab:
        torch.save({"state_dict": in_openmmlab_form(state)}, tmp_path / "file.pth")
    else:
        torch.save({"model": state, "optimizer": {}}, tmp_path / "file.pth")
    loaded = create(TINY, (64, 64)).eval()
    load_weights(loaded, tmp_path / "file.pth", "mixmim_base")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.forward_features(images), saved.forward_features(images))


def seeded_in_openmmlab_form(network):
    """Make the checkpoint that tests/reference/openmmlab.py makes, without OpenMMLab's code."""
    theirs = {}
    for key, value in network.state_dict().items():
        name = name_in_openmmlab(key)
        if key.endswith("pos_embed"):
            side = round(value.shape[1] ** 0.5)  # OpenMMLab's own tables are the release's, transposed
            theirs[name] = value.view(side, side, -1).transpose(0, 1).reshape(value.shape)
        else:
            theirs[name] = torch.from_numpy(seeded.weights(name, tuple(value.shape), 0))
    return {"state_dict": theirs}


def check_golden(name, results):
    golden = json.loads((Path(__file__).parent / "golden" / f"{name}.json").read_text())
    for name, values in seeded.digest(results).items():
        np.testing.assert_allclose(values, golden[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_classifier_computes_what_openmmlab_computes():
    """Against numbers made by OpenMMLab's code; `pytest -m reference` makes them again."""
    network = timm.create_model("mixmim_base").eval()
    network.load_state_dict(convert(seeded_in_openmmlab_form(network), network))
    images = torch.from_numpy(seeded.images(2, 224, 0))
    with torch.no_grad():
        last, stages = network.forward_intermediates(images, output_fmt="NHWC", norm=False)
        results = {f"stage{i}": tokens.numpy() for i, tokens in enumerate(stages)}
        results["features"] = network.forward_head(last, pre_logits=True).numpy()
        results["logits"] = network.forward_head(last).numpy()
    check_golden("openmmlab_classifier_base", results)


def test_224_pixel_weights_compute_at_384_what_the_release_computes(tmp_path):
    """Against numbers made by the released code, its interpolation included; tests/reference/released.py."""
    small = timm.create_model("mixmim_base")
    state = {
        name: value
        if name.endswith("pos_embed")
        else torch.from_numpy(seeded.weights(name, tuple(value.shape), 0))
        for name, value in small.state_dict().items()
    }
    torch.save({"model": state}, tmp_path / "b224.pth")
    network = timm.create_model("mixmim_base_384").eval()
    (note,) = load_weights(network, tmp_path / "b224.pth", "mixmim_base_384")
    assert "a starting point for fine-tuning" in note
    with torch.no_grad():
        pooled = network.forward_head(
            network.forward_features(torch.from_numpy(seeded.images(1, 384, 0))), pre_logits=True
        )
        results = {
            "positions": network.absolute_pos_embed.numpy(),
            "features": pooled.numpy(),
            "logits": network.head(pooled).numpy(),
        }
    check_golden("released_384", results)


def test_pretraining_computes_what_openmmlab_computes():
    network = pretraining_model("mixmim_base", decoder_norm_eps=1e-6)
    network.load_state_dict(convert(seeded_in_openmmlab_form(network), network))
    golden = json.loads((Path(__file__).parent / "golden" / "openmmlab_pretraining_base.json").read_text())
    mask = torch.tensor(golden["mask"]).view(7, 7)
    result = network(torch.from_numpy(seeded.images(3, 224, 1)), mask)
    result.loss.backward()
    gradients = {
        "gradient_first": network.patch_embed.proj.weight.grad.numpy(),
        "gradient_last": network.decoder_pred.bias.grad.numpy(),
    }
    check_golden("openmmlab_pretraining_base", {"loss": result.loss.item(), **gradients})


@pytest.mark.parametrize("rows_first", [False, True])
def test_positions_of_another_size_keep_their_order(tiny, tmp_path, rows_first):
    """The release and OpenMMLab write rows and columns in different orders."""
    saved = tiny(img_size=64)
    table = sincos_positions((16, 16), 16).view(16, 16, 16)
    saved.absolute_pos_embed[:] = (table.transpose(0, 1) if rows_first else table).reshape(1, 256, 16)
    torch.save(saved.half().state_dict(), tmp_path / "file.pth")
    loaded = tiny(seed=1, img_size=(96, 128))
    load_weights(loaded, tmp_path / "file.pth", "mixmim_base")
    # the release's rule (Sense-X/MixMIM, util/pos_embed.py)
    old = saved.absolute_pos_embed.float().view(1, 16, 16, 16).permute(0, 3, 1, 2)
    expected = F.interpolate(old, size=(24, 32), mode="bicubic", align_corners=False)
    torch.testing.assert_close(
        loaded.absolute_pos_embed.view(1, 24, 32, 16).permute(0, 3, 1, 2), expected, atol=1e-3, rtol=1e-3
    )


def test_positions_that_were_learnt_are_interpolated(tiny, tmp_path):
    saved = tiny(img_size=64)
    saved.absolute_pos_embed[:] = 3.0
    torch.save(saved.state_dict(), tmp_path / "file.pth")
    loaded = tiny(seed=1, img_size=128)
    load_weights(loaded, tmp_path / "file.pth", "mixmim_base")
    assert (loaded.absolute_pos_embed == 3.0).all()


@pytest.mark.parametrize(("own", "other"), [(64, 128), (128, 64), (64, 96)])
def test_weights_of_another_size_are_interpolated(tiny, tmp_path, own, other):
    saved = tiny(img_size=own)
    torch.save(saved.state_dict(), tmp_path / "file.pth")
    loaded = tiny(seed=1, img_size=other)
    load_weights(loaded, tmp_path / "file.pth", "mixmim_base")
    resized = resize_positions(saved.absolute_pos_embed, (own // 4, own // 4), (other // 4, other // 4))
    torch.testing.assert_close(loaded.absolute_pos_embed, resized)
    theirs = saved.layers[0].blocks[0].attn.relative_position_bias_table
    ours = loaded.layers[0].blocks[0].attn.relative_position_bias_table
    middle = [table.shape[0] // 2 for table in (theirs, ours)]
    torch.testing.assert_close(theirs[middle[0]], ours[middle[1]], atol=1e-5, rtol=1e-4)  # distance 0


@pytest.fixture
def of_384(tmp_path):
    """The weights of a small network with the windows of the 384-pixel release."""
    path = tmp_path / "b384.pth"
    torch.save(timm.create_model("mixmim_base_384", **SMALL).state_dict(), path)
    return path


@pytest.mark.parametrize("size", [224, 384, 512])
def test_weights_of_the_384_release_are_another_network_at_every_size(of_384, size):
    network = timm.create_model("mixmim_base", img_size=size, **SMALL)
    with pytest.raises(BenchError, match=r"384 x 384 pixels with windows of 16, 16, 24, 12 tokens"):
        load_weights(network, of_384, "mixmim_base")
    own = timm.create_model("mixmim_base_384", img_size=size, **SMALL)
    assert load_weights(own, of_384, "mixmim_base_384") == []


def test_windows_that_the_caller_states_are_meant(of_384):
    network = timm.create_model("mixmim_base", window_size=(14, 14, 14, 7), **SMALL)
    load_weights(network, of_384, "mixmim_base")


def test_the_384_networks_start_from_224_pixel_weights(tmp_path):
    """As the release's fine-tuning at 384 pixels does; at 224 they are another network."""
    torch.save(timm.create_model("mixmim_base", **SMALL).state_dict(), tmp_path / "b.pth")
    network = timm.create_model("mixmim_base_384", **SMALL)
    (note,) = load_weights(network, tmp_path / "b.pth", "mixmim_base_384")
    assert "interpolated to 16, 16, 24, 12: a starting point for fine-tuning" in note
    with pytest.raises(BenchError, match="another network"):
        load_weights(
            timm.create_model("mixmim_base_384", img_size=224, **SMALL), tmp_path / "b.pth", "mixmim_base_384"
        )


@pytest.mark.parametrize("size", [224, (224, 384), 128])
def test_only_the_384_networks_have_such_a_start(tmp_path, size):
    """Smaller weights of other windows are another network, also for a network larger on one side only."""
    arch = "mixmim_base" if size == 224 else "mixmim_base_384"
    windows = {"window_size": (16, 16, 8, 4), "img_size": 128} if size == 224 else {}
    torch.save(timm.create_model("mixmim_base", **windows, **SMALL).state_dict(), tmp_path / "other.pth")
    with pytest.raises(BenchError, match="another network"):
        load_weights(timm.create_model(arch, img_size=size, **SMALL), tmp_path / "other.pth", arch)


def test_weights_that_are_only_a_start_say_so_in_the_notes(tmp_path):
    small = ModelSpec(name="mixmim-b-384", arch="mixmim_base_384", kwargs=SMALL)
    torch.save(timm.create_model("mixmim_base", **SMALL).state_dict(), tmp_path / "b.pth")
    notes = []
    build(small, Weights(kind="file", name="b", path=str(tmp_path / "b.pth")), (384, 384), 0, notes=notes)
    assert "a starting point for fine-tuning" in notes[0]


def test_the_network_that_weights_were_made_for_is_named(tmp_path):
    large = timm.create_model("mixmim_large", num_classes=3)
    torch.save({"state_dict": in_openmmlab_form(large.state_dict())}, tmp_path / "large.pth")
    with pytest.raises(BenchError, match="these are weights of mixmim_large"):
        load_weights(timm.create_model("mixmim_base"), tmp_path / "large.pth", "mixmim_base")


def test_a_checkpoint_is_loaded_and_checked(tmp_path):
    saved = create(TINY, (32, 32), num_classes=5)
    torch.save({"model": saved.state_dict()}, tmp_path / "good.pth")
    weights = resolve_weights(TINY, str(tmp_path / "good.pth"))
    assert re.fullmatch("[0-9a-f]{64}", weights.sha256)
    images = torch.randn(2, 3, 32, 32)
    for classes in (5, 0, 9):
        loaded = build(TINY, weights, (32, 32), seed=1, num_classes=classes).eval()
        torch.testing.assert_close(
            loaded.forward_features(images), saved.eval().forward_features(images), atol=1e-6, rtol=1e-5
        )
    assert torch.equal(build(TINY, weights, (32, 32), 1, 5).head.weight, saved.head.weight)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("norm.weight"), "1 missing (norm.weight)"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("layers.1.blocks.0")], "missing (layers.1.bl"),
        (lambda s: s.update(surplus=torch.zeros(1)), "1 unexpected (surplus)"),
        (lambda s: s.update({"norm.weight": torch.zeros(3)}), "1 of another shape (norm.weight)"),
        (lambda s: s["norm.weight"].fill_(torch.nan), "non-finite values: 1 tensors (norm.weight)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, change, told):
    state = create(TINY, (32, 32)).state_dict()
    change(state)
    torch.save(state, tmp_path / "bad.pth")
    for classes in (0, 12):
        with pytest.raises(BenchError, match=re.escape(told)):
            load_weights(create(TINY, (32, 32), classes), tmp_path / "bad.pth", "mixmim_base")


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, run):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    args = ("-m", "test_vit", "-t", "digits", "-p", "knn", "--results", tmp_path / "r")
    said = run("run", *args, "--weights", tmp_path / "resnet.pth", code=2).output
    assert "does not fit test_vit" in said.replace("\n", " ") and "missing" in said


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"hello world", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(BenchError, match="cannot be read as a checkpoint"):
        load_weights(create(TINY, (32, 32)), tmp_path / "file.pth", "mixmim_base")


def test_a_web_page_is_told_from_a_checkpoint(tmp_path):
    (tmp_path / "file.pth").write_text("<!DOCTYPE html><html>Google Drive - Virus scan warning</html>")
    with pytest.raises(BenchError, match="it is a web page; download the file itself") as told:
        load_weights(create(TINY, (32, 32)), tmp_path / "file.pth", "mixmim_base")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("arch", ["levit_128s", "repvit_m0_9", "shvit_s1", "test_resnet", "test_byobnet"])
def test_checkpoints_of_timm_load_whatever_their_heads_and_names(arch, tmp_path):
    saved = timm.create_model(arch)
    torch.save(saved.state_dict(), tmp_path / "file.pth")
    for classes in (0, 7, 1000):
        notes = load_weights(timm.create_model(arch, num_classes=classes), tmp_path / "file.pth", arch)
        assert bool(notes) == (classes == 7)


def test_a_missing_layer_of_a_timm_checkpoint_is_still_an_error(tmp_path):
    state = timm.create_model("repvit_m0_9").state_dict()
    for key in [key for key in state if key.startswith("stages.1.blocks.0")]:
        del state[key]
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(BenchError, match="missing"):
        load_weights(timm.create_model("repvit_m0_9", num_classes=0), tmp_path / "file.pth", "repvit_m0_9")


class Malicious:
    def __reduce__(self):
        return (print, ("this code must never run",))


def test_code_in_a_checkpoint_is_never_run(tmp_path, capsys):
    torch.save(
        {"model": timm.create_model("test_vit").state_dict(), "extra": Malicious()}, tmp_path / "file.pth"
    )
    with pytest.raises(BenchError, match="cannot be read as a checkpoint: it contains an object of"):
        load_weights(timm.create_model("test_vit"), tmp_path / "file.pth", "test_vit")
    assert "never run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("real", "called"), [("pth", "safetensors"), ("safetensors", "pth"), ("safetensors", "bin")]
)
def test_a_file_is_known_by_its_content_and_not_by_its_name(tmp_path, real, called):
    state = timm.create_model("test_vit").state_dict()
    (save_file if real == "safetensors" else torch.save)(state, tmp_path / f"real.{real}")
    shutil.copy(tmp_path / f"real.{real}", tmp_path / f"called.{called}")
    assert load_weights(timm.create_model("test_vit"), tmp_path / f"called.{called}", "test_vit") == []


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_a_file_that_was_cut_short_is_refused(tmp_path, suffix, share):
    state = timm.create_model("test_vit").state_dict()
    (save_file if suffix == "safetensors" else torch.save)(state, tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(content[: int(share * len(content))])
    with pytest.raises(BenchError, match="cannot be read as a checkpoint") as told:
        load_weights(timm.create_model("test_vit"), tmp_path / f"cut.{suffix}", "test_vit")
    assert "\n" not in str(told.value)


def vit_state(**changes):
    return {**timm.create_model("test_vit").state_dict(), **changes}


def refusal(tmp_path, checkpoint, classes=0):
    torch.save(checkpoint, tmp_path / "file.pth")
    with pytest.raises(BenchError) as told:
        load_weights(timm.create_model("test_vit", num_classes=classes), tmp_path / "file.pth", "test_vit")
    assert "\n" not in str(told.value) and "\x1b" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("extra", "name"),
    [(Malicious(), "print"), (Path("x"), "pathlib"), (decimal.Decimal(1), "decimal.Decimal")],
)
def test_a_refused_object_is_named_with_the_way_out(tmp_path, extra, name):
    said = refusal(tmp_path, {"model": vit_state(), "extra": extra})
    assert (
        "it contains an object of " in said and name in said and "code in a checkpoint is never run" in said
    )
    assert "safetensors" in said and "weights_only" not in said


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"hello world\n", "it is a text file"),
        (bytes(range(1, 200)), "it is neither a torch.save nor a safetensors file"),
    ],
)
def test_why_a_file_is_no_checkpoint(tmp_path, content, reason):
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(BenchError, match=reason):
        load_weights(timm.create_model("test_vit"), tmp_path / "file.pth", "test_vit")


def test_tensors_that_are_no_plain_numbers_are_named(tmp_path):
    weight = vit_state()["norm.weight"]
    assert "of another type (norm.weight int64)" in refusal(
        tmp_path, vit_state(**{"norm.weight": weight.long()})
    )
    said = refusal(tmp_path, vit_state(**{"norm.weight": weight.to_sparse()}))
    assert "norm.weight" in said and "sparse" in said
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch gives them up
        quantised = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    said = refusal(tmp_path, vit_state(**{"norm.weight": quantised}))
    assert "norm.weight" in said and "dequantize" in said


def test_a_trained_weight_without_its_bias_is_missing_it(tmp_path):
    state = vit_state()
    del state["head.bias"]
    assert "1 missing (head.bias)" in refusal(tmp_path, state, classes=1000)


@pytest.mark.parametrize("prefix", ["backbone.", "encoder.", "network.", "student.backbone."])
def test_a_network_inside_a_larger_one_is_found(tmp_path, prefix):
    saved = timm.create_model("test_vit", num_classes=0)
    state = {f"{prefix}{key}": value for key, value in saved.state_dict().items()}
    torch.save({**state, "projector.weight": torch.zeros(2, 2)}, tmp_path / "file.pth")
    loaded = timm.create_model("test_vit", num_classes=0)
    (note,) = load_weights(loaded, tmp_path / "file.pth", "test_vit")
    assert f"only the tensors below '{prefix}' were loaded; skipped: projector.weight" in note
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), saved.parameters(), strict=True))


def test_another_librarys_copy_is_recognised_by_its_shapes(tmp_path):
    renamed = {f"layer{i}": value for i, value in enumerate(vit_state().values())}
    said = refusal(tmp_path, renamed)
    assert "order and shapes match another library's copy of this network" in said


def test_a_classifier_of_another_width_is_left_out_whole(tmp_path):
    torch.save(vit_state(**{"head.weight": torch.zeros(1000, 128)}), tmp_path / "file.pth")
    (note,) = load_weights(timm.create_model("test_vit"), tmp_path / "file.pth", "test_vit")
    assert "newly initialised: head.bias, head.weight" in note


def test_two_copies_of_a_network_are_not_chosen_between(tmp_path):
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    both = {f"{who}.backbone.{key}": value for who in ("student", "teacher") for key, value in state.items()}
    said = refusal(tmp_path, both)
    assert "holds this network 2 times, below 'student.backbone.' and 'teacher.backbone.'" in said
