"""`pretrain` and `reconstruct`: what they write, how they continue, and what they refuse."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from test_processes import launch
from test_training import Quiet

from mixmim_bench import pretraining as module
from mixmim_bench.data.pictures import Pictures
from mixmim_bench.errors import BenchError
from mixmim_bench.machine import Machine
from mixmim_bench.models.build import build
from mixmim_bench.models.checkpoints import load_weights
from mixmim_bench.pretraining import Pretraining, PretrainingRecipe, build_network, open_images, pretrain
from mixmim_bench.reconstruction import draw, reconstruct
from mixmim_bench.specs import ModelSpec
from mixmim_bench.training import checkpoints, contract, loop, trainer
from mixmim_bench.training.objectives import Reconstructing
from mixmim_bench.weights.find import resolve_weights

TINY = ModelSpec(
    name="tiny",
    arch="mixmim_base",
    kwargs={"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
)
RECIPE = {
    "epochs": 3,
    "batch_size": 4,
    "warmup_epochs": 1.0,
    "decoder_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}
CPU = Machine(device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Crops of two photographs, in nested folders; one file is no image."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(9):
        pixels = load_sample_images().images[i % 2]
        y, x = rng.integers(0, 300, 2)
        path = folder / f"{i % 2}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[y : y + 96, x : x + 96]).save(path)
    (folder / "notes.txt").write_text("no image")
    return folder


def wanted(photos, size=64, seed=0, **changes):
    recipe = PretrainingRecipe(**{**RECIPE, **changes})
    part = open_images(str(photos))
    return Pretraining(model=TINY, part=part, recipe=recipe, size=(size, size), seed=seed)


def test_it_learns_and_its_checkpoint_fills_every_network(photos, tmp_path):
    done = pretrain(wanted(photos, epochs=30, base_lr=0.1), tmp_path / "out", CPU, Quiet(), keep_every=20)
    assert np.mean(done.losses[-3:]) < 0.97 * done.losses[0] and len(done.losses) == 30
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "checkpoint.pth", "checkpoint-20.pth", "logs", "pretraining.json",
    }  # fmt: skip
    record = json.loads((tmp_path / "out" / "pretraining.json").read_text())
    assert record["losses"] == done.losses and record["images"] == 9
    assert record["settings"]["mask_ratio"] == [0.5]
    rows = (tmp_path / "out" / "logs" / "pretraining.csv").read_text().splitlines()
    assert rows[0] == "step,epoch,loss,lr,images_per_s" and len(rows) == 1 + 2 * 30

    weights = resolve_weights(TINY, str(done.checkpoint))
    network = build(TINY, weights, (64, 64), seed=1, num_classes=3)
    saved = torch.load(done.checkpoint)["model"]
    assert torch.equal(
        network.layers[0].blocks[0].attn.qkv.weight, saved["layers.0.blocks.0.attn.qkv.weight"]
    )
    larger = build(TINY, weights, (96, 96), seed=1)  # positions and windows are interpolated
    assert larger(torch.zeros(1, 3, 96, 96)).shape == (1, 64)
    again = build_network(TINY, (64, 64), 5, decoder_dim=16, decoder_depth=1, decoder_num_heads=2)
    load_weights(again, done.checkpoint, TINY.arch)
    assert all(torch.equal(again.state_dict()[name], saved[name]) for name in saved)
    # the same command again has nothing to do
    before = done.checkpoint.stat().st_mtime_ns
    assert (
        pretrain(wanted(photos, epochs=30, base_lr=0.1), tmp_path / "out", CPU, Quiet()).losses == done.losses
    )
    assert done.checkpoint.stat().st_mtime_ns == before


def test_an_interrupted_pretraining_ends_with_the_same_weights(photos, tmp_path, monkeypatch):
    for name in ("FEWEST_S", "EVERY_S"):
        monkeypatch.setattr(checkpoints, name, 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 1e9)
    whole = pretrain(wanted(photos, mask_ratio=(0.3, 0.7)), tmp_path / "whole", CPU, Quiet())
    real = trainer.Trainer._step

    def stop(self, batch, update):
        if update == 3:
            monkeypatch.setattr(trainer.Trainer, "_step", real)
            signal.raise_signal(signal.SIGTERM)
        return real(self, batch, update)

    monkeypatch.setattr(trainer.Trainer, "_step", stop)
    with pytest.raises(SystemExit):
        pretrain(wanted(photos, mask_ratio=(0.3, 0.7)), tmp_path / "out", CPU, Quiet())
    assert (tmp_path / "out" / "unfinished").is_dir() and not (tmp_path / "out" / "checkpoint.pth").exists()
    with pytest.raises(BenchError, match="holds another pretraining, with other base_lr, seed; use another"):
        pretrain(wanted(photos, seed=1, base_lr=1.0, mask_ratio=(0.3, 0.7)), tmp_path / "out", CPU, Quiet())
    done = pretrain(wanted(photos, mask_ratio=(0.3, 0.7)), tmp_path / "out", CPU, Quiet())
    assert done.losses == whole.losses
    ours, theirs = (torch.load(each.checkpoint)["model"] for each in (done, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not (tmp_path / "out" / "unfinished").exists()


def test_the_recipe_is_that_of_the_release(photos):
    """exp/base_600ep/pretrain.sh and main_pretrain.py of Sense-X/MixMIM, at their batch of 2,048."""
    recipe = PretrainingRecipe()
    assert (recipe.epochs, recipe.batch_size, recipe.warmup_epochs) == (600, 2048, 40)
    assert contract.scaled(recipe.base_lr, recipe.batch_size) == pytest.approx(1.2e-3)
    assert recipe.schedule(1_281_167) == contract.Schedule(
        epochs=600, batch_size=2048, lr=1.2e-3, warmup_epochs=40, betas=(0.9, 0.95), weight_decay=0.05
    )
    assert (recipe.betas, recipe.weight_decay, recipe.min_lr, recipe.clip_grad) == (
        (0.9, 0.95),
        0.05,
        0.0,
        0.0,
    )
    assert (recipe.mask_ratio, recipe.norm_pix_loss, recipe.crop_scale, recipe.hflip) == (
        (0.5,),
        True,
        (0.2, 1.0),
        0.5,
    )
    network = wanted(photos).network()
    optimizer = trainer._timm_optimizer(
        network, contract.Schedule(epochs=1, batch_size=4, lr=1.0, weight_decay=0.05)
    )
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    free = {names[id(p)] for g in optimizer.param_groups if not g["weight_decay"] for p in g["params"]}
    assert free == {
        name for name, p in network.named_parameters() if p.ndim == 1
    }  # the mask token is decayed


def test_masks_follow_the_ratio_and_its_bounds(photos):
    network = wanted(photos, size=224).network()
    seen = []
    network.forward = lambda _, ratio: seen.append(int(network.random_mask(ratio).sum())) or network
    network.loss = torch.zeros(())
    torch.manual_seed(0)
    images = torch.zeros(4, 3, 8, 8)
    for objective in (Reconstructing((0.5,)), Reconstructing((0.3, 0.7))):
        for _ in range(200):
            objective.loss(network, images, images)
    assert set(seen[:200]) == {24}  # int(49 * 0.5)
    assert min(seen[200:]) == 14 and max(seen[200:]) == 34


def test_odd_batches_leave_no_image_without_a_partner():
    objective = Reconstructing((0.5,))
    images, targets = objective.prepare(torch.zeros(5, 3, 8, 8), None)
    assert len(images) == len(targets) == 4 and objective.together == 2
    for share, at_once in ((10, 4), (6, 3), (8, 8)):
        network = torch.nn.Linear(1, 1)
        machine = Machine(device="cpu", given_batch_size=at_once)
        found = loop.images_at_once(machine, network, share, 1.0, trainer.fewest_at_once(network, objective))
        pieces = trainer.pieces(share, found // 2 * 2, 2)
        assert all((piece.stop - piece.start) % 2 == 0 for piece in pieces)


def test_two_processes_pretrain_and_the_main_one_writes(photos, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from test_pretraining_runs import *\n"
        "from mixmim_bench.machine import open_machine\n"
        "torch.set_num_threads(1)\n"
        "machine = open_machine('cpu', workers=0)\n"
        "done = pretrain(wanted(Path(sys.argv[2])), Path(sys.argv[3]), machine, Quiet())\n"
        "print(done.losses)\n"
    )
    ended = launch(2, script, Path(__file__).parent, photos, tmp_path / "out")
    assert [status for status, _ in ended] == [0, 0], ended
    outputs = [output.splitlines()[-1] for _, output in ended]
    assert outputs[0] == outputs[1]
    record = json.loads((tmp_path / "out" / "pretraining.json").read_text())
    assert record["provenance"]["processes"] == 2 and str(record["losses"]) == outputs[0]


# -- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0, 1.5])
def test_a_mask_that_leaves_nothing_is_refused(photos, ratio):
    with pytest.raises(
        BenchError, match=r"mask_ratio .* exchanges \d+ of 4 cells .*at least 1 and at most 3"
    ):
        wanted(photos, mask_ratio=(ratio,)).network()


def test_wrong_input_is_refused_before_anything_is_written(run, photos, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    for args, told in (
        (("--data", tmp_path / "empty"), f"no images in {tmp_path / 'empty'} (extensions: "),
        (("--data", tmp_path / "none"), "there is no such folder"),
        (("--data", "digit"), "did you mean digits or dtd?"),
        (("--data", photos, "-m", "resnet50"), "resnet50 is not a MixMIM"),
        (("--data", photos, "--image-size", "48"), "requires image sides that are multiples of 32"),
        (("--data", photos, "--set", "batch_size=7"), "batch_size must be even: images are paired"),
        (("--data", photos, "--set", "epoch=7"), "unknown key 'epoch'; did you mean epochs"),
        (("--data", photos, "--set", "epochs=7"), "warmup_epochs must be below epochs"),
        (("--data", photos, "--set", "mask_ratio=[0.6, 0.4]"), "mask_ratio must be in ascending order"),
        (("--data", photos, "--track", "tensorbord"), "did you mean tensorboard?"),
        (("--data", photos, "--fsdp"), "start them with torchrun or accelerate launch"),
        (("--data", photos, "--precision", "float16", "--device", "cpu"), "float16 needs a GPU"),
    ):
        said = run("pretrain", "--out", out, *args, code=2).output
        assert told in said.replace("\n", " "), said
        assert not out.exists()
    settings = [text for key, value in RECIPE.items() for text in ("--set", f"{key}={value}")]
    for folder, args, told in (
        (tmp_path / "full", (), "holds other files; use another folder"),
        (out, ("--set", "mask_ratio=0.1"), "mask_ratio 0.1 exchanges 0 of 4 cells"),
    ):
        said = run(
            "pretrain", "--data", photos, "--out", folder, "--image-size", "64", *settings, *args, code=2
        ).output
        assert told in said, said


def test_one_image_has_no_partner(photos, tmp_path):
    alone = wanted(photos)
    few = Pretraining(model=TINY, part=alone.part.take(np.arange(1)), recipe=alone.recipe, size=(64, 64))
    with pytest.raises(BenchError, match="pretraining mixes images in pairs and needs at least 2, not 1"):
        pretrain(few, tmp_path / "out", CPU, Quiet())


def test_an_unreadable_image_is_named_or_skipped(photos, tmp_path):
    for i in range(4):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.open(photos / f"{i % 2}" / f"{i}.png").save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(BenchError, match=r"broken\.png .*`pretrain --skip-unreadable`"):
        pretrain(wanted(tmp_path / "in"), tmp_path / "out", CPU, Quiet())
    skipping = Pretraining(**{**vars(wanted(tmp_path / "in")), "skip_unreadable": True})
    done = pretrain(skipping, tmp_path / "other", CPU, Quiet())
    record = json.loads((tmp_path / "other" / "pretraining.json").read_text())
    assert record["unreadable"] == 1 and len(done.losses) == 3


# -- reconstructions ------------------------------------------------------------------------------------


def test_reconstructions_are_the_predictions_of_the_loss(photos):
    """Hidden cells are the predictions that the loss is computed from, at the scale of the image's cells."""
    network = wanted(photos).network().eval()
    torch.manual_seed(0)
    pair, mask = torch.randn(2, 3, 64, 64), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    first, second, mixed, of_first, of_second = reconstruct(network, pair, mask)
    assert torch.equal(first, pair[0]) and torch.equal(second, pair[1])
    with torch.no_grad():
        predicted = network(pair, mask).patches  # (2, 4, 3072), in the mixture in which each was hidden
    top_left = (slice(None), slice(0, 32), slice(0, 32))
    assert torch.equal(mixed[top_left], second[top_left]) and torch.equal(
        of_second[top_left], second[top_left]
    )
    cell = first[top_left].permute(1, 2, 0).flatten()
    expected = predicted[0, 0] * (cell.var() + 1e-6).sqrt() + cell.mean()
    torch.testing.assert_close(of_first[top_left].permute(1, 2, 0).flatten(), expected, atol=1e-4, rtol=1e-4)
    bottom_left = (slice(None), slice(32, 64), slice(0, 32))
    assert torch.equal(mixed[bottom_left], first[bottom_left])
    assert torch.equal(of_first[bottom_left], first[bottom_left])
    assert not torch.equal(of_second[bottom_left], second[bottom_left])


def test_a_picture_of_pairs_is_drawn(run, photos, tmp_path, monkeypatch):
    done = pretrain(wanted(photos), tmp_path / "out", CPU, Quiet())
    small = {name: RECIPE[name] for name in RECIPE if name.startswith("decoder")}
    network = build_network(TINY, (64, 64), 0, **small)
    load_weights(network, done.checkpoint, TINY.arch)
    files = sorted(photos.rglob("*.png"))[:3]
    picture = draw(network.eval(), TINY, Pictures(files), 0.5, seed=0)
    assert picture.size == (5 * 136 - 8, 20 + 2 * 136 - 8)  # of 64 pixels, enlarged
    assert np.asarray(picture).std() > 20
    with pytest.raises(BenchError, match="needs at least 2, not 1"):
        draw(network, TINY, Pictures(files[:1]), 0.5, seed=0)

    def built(_, **given):
        assert {name: given[name] for name in small} == small and given["norm_pix_loss"] is True
        return network

    monkeypatch.setattr(module, "pretraining_model", built)
    out = tmp_path / "picture.png"
    args = ["--weights", done.checkpoint, "--image-size", "64", "--out", out]
    assert f"{out}: 672 x 284 pixels" in run("reconstruct", *files, *args).output
    encoder = tmp_path / "encoder.pth"
    state = torch.load(done.checkpoint)["model"]
    settings = torch.load(done.checkpoint)["settings"]
    bare = {k: v for k, v in state.items() if "decoder" not in k}
    torch.save({"model": bare, "settings": settings}, encoder)
    said = run("reconstruct", *files, "--weights", encoder, "--image-size", "64", code=2).output
    assert "missing (decoder_" in said


def test_weights_are_a_starting_point(photos, tmp_path):
    done = pretrain(wanted(photos), tmp_path / "first", CPU, Quiet())
    more = Pretraining(**{**vars(wanted(photos, epochs=2)), "weights": done.checkpoint})
    after = pretrain(more, tmp_path / "second", CPU, Quiet())
    assert after.losses[0] < done.losses[0]
