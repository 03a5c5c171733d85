"""The recipes of fine-tuning: layer ids, presets, heads from probes, and what is chosen on val."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import timm
import torch
from test_training import TINY, bench_for, digits, splits_of, trained

from mixmim_bench.errors import BenchError
from mixmim_bench.models.build import create
from mixmim_bench.protocols import build_protocol, find_protocol, resolve_protocol
from mixmim_bench.protocols.classification.finetune import SHORT, Finetune
from mixmim_bench.protocols.classification.linear import Linear
from mixmim_bench.protocols.tuning import build_network, classifier, head_of_classes, set_head
from mixmim_bench.specs import ModelSpec
from mixmim_bench.training import trainer
from mixmim_bench.training.contract import Schedule

# -- learning rates by layer ----------------------------------------------------------------------------

DEPTHS = (1, 1, 2, 1)


def released_scale(name, decay):
    """The factor in the release: `get_layer_id` of its main_finetune.py, from the facts on it."""
    layers = sum(DEPTHS) + 1
    if name.startswith("patch_embed"):
        place = 0
    elif name.startswith("layers"):
        stage = int(name.split(".")[1])
        block = int(name.split(".")[3]) if ".blocks." in name else DEPTHS[stage]  # that after the stage
        place = sum(DEPTHS[:stage]) + block + 1
    else:
        place = layers - 1  # norm and head alike
    return decay ** (layers - place)


def openmmlab_scale(name, decay):
    """The factor in OpenMMLab: `get_layer_depth` of its MixMIMTransformer and its optimizer constructor."""
    layers = sum(DEPTHS) + 2
    if name.startswith("patch_embed"):
        place = 0
    elif name.startswith("layers"):
        stage = int(name.split(".")[1])
        block = int(name.split(".")[3]) if ".blocks." in name else DEPTHS[stage] - 1
        place = sum(DEPTHS[:stage]) + block + 1
    else:
        place = layers - 1 if name.startswith("head") else layers - 2
    return decay ** (layers - 1 - place)


def timm_scale(name, decay):
    return 1.0 if name.startswith("head") else released_scale(name, decay)


@pytest.mark.parametrize(
    ("layer_ids", "expected"),
    [("release", released_scale), ("openmmlab", openmmlab_scale), ("timm", timm_scale)],
)
def test_learning_rates_are_those_of_the_published_code(layer_ids, expected):
    bench, _ = bench_for(digits(layer_decay=0.7, layer_ids=layer_ids))
    recipe = build_protocol(bench.run.protocol, "classification")
    network, _ = build_network(bench, recipe)
    optimizer = trainer._timm_optimizer(network, recipe._schedule(1000, network))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {names[id(p)]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert found == pytest.approx({name: expected(name, 0.7) for name in found})
    assert len(found) == len(names)


def test_other_architectures_keep_their_layers():
    bench, _ = bench_for(
        digits(layer_decay=0.7, layer_ids="release"), model=ModelSpec(name="v", arch="test_vit")
    )
    recipe = build_protocol(bench.run.protocol, "classification")
    network, _ = build_network(bench, recipe)
    optimizer = trainer._timm_optimizer(network, recipe._schedule(1000, network))
    plain = trainer._timm_optimizer(
        network, dataclasses.replace(recipe._schedule(1000, network), head_lr_scale=1.0)
    )
    assert [g["lr_scale"] for g in optimizer.param_groups] == [g["lr_scale"] for g in plain.param_groups]


def test_the_learning_rates_are_said_once():
    _, _, bench = trained(n=100, epochs=1, layer_decay=0.5)
    lines = [line for line in bench.stages.said if line.startswith("    ")]
    assert len(lines) == 7
    assert lines[0].endswith(": head") and "patch_embed" in lines[-1]
    assert [float(line.split(":")[0]) for line in lines] == sorted(
        (float(line.split(":")[0]) for line in lines), reverse=True
    )


# -- the recipe of the paper ----------------------------------------------------------------------------


def test_the_paper_preset_is_the_released_script():
    """exp/base_600ep/finetune.sh and main_finetune.py of Sense-X/MixMIM, at their batch of 1,024."""
    recipe = resolve_protocol("finetune", "classification", "paper", {}, random_weights=False)
    network = create(TINY, (32, 32), 1000)
    schedule = recipe._schedule(1_281_167, network)
    assert schedule == Schedule(
        epochs=100,
        batch_size=1024,
        lr=2e-3,
        min_lr=1e-6,
        warmup_epochs=5,
        betas=(0.9, 0.999),
        weight_decay=0.05,
        layer_decay=0.7,
        head_lr_scale=0.7,
    )
    assert (recipe.drop_path, recipe.smoothing, recipe.reprob, recipe.remode) == (0.1, 0.1, 0.25, "pixel")
    mixup = recipe._mixup(1000, recipe.smoothing)
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.mix_prob, mixup.switch_prob) == (0.8, 1.0, 1.0, 0.5)
    assert (mixup.mode, mixup.label_smoothing) == ("batch", 0.1)
    assert recipe.auto_augment == "rand-m9-mstd0.5-inc1"
    optimizer = trainer._timm_optimizer(network, schedule)
    decayed = [p.ndim for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.999)}
    assert min(decayed) == 2 and sum(p.ndim > 1 for p in network.parameters()) == len(decayed)


def test_every_knob_of_the_augmentation_is_used():
    bench, _ = bench_for(digits(auto_augment="", color_jitter=0.4, reprob=0.5, remode="const", hflip=1.0))
    recipe = build_protocol(bench.run.protocol, "classification")
    text = str(recipe._transform(bench).transform.transforms)
    assert "ColorJitter(brightness=(0.6" in text and "RandomErasing(p=0.5, mode=const" in text


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("layer_ids", "swin", "layer_ids must be one of timm, release, openmmlab"),
        ("ema_decay", 1.0, "ema_decay must be at least 0 and below 1"),
        ("layer_decay", 1.1, "layer_decay must be at most 1"),
        ("epochs_grid", (3, 0), "epochs must be at least 1"),
        ("base_lr_grid", (0.1, -1.0), "base_lr must be above 0"),
        ("head_init", "zero", "head_init must be one of random, linear"),
        ("mixup_mode", "all", "mixup_mode must be one of batch, pair, elem"),
    ],
)
def test_values_out_of_range_are_refused(key, value, told):
    with pytest.raises(BenchError, match=told):
        Finetune(**{key: value})


# -- presets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "recipe", "preset"),
    [
        (1_281_167, {}, "paper"),
        (50_000, {}, "paper"),  # 48 steps in each of 100 epochs
        (25_000, {}, "small"),
        (1000, {"epochs": 2500, "batch_size": 1024}, "paper"),
        (1000, {"epochs": 2499, "batch_size": 1024}, "small"),
    ],
)
def test_auto_chooses_by_the_number_of_steps(images, recipe, preset):
    counts = {"train": images - 100, "val": 100, "test": 10}
    for kind in ("classification", "multilabel"):
        chosen = resolve_protocol("finetune", kind, "auto", recipe, False, counts)
        assert chosen == resolve_protocol("finetune", kind, preset, recipe, False)
        random = resolve_protocol("finetune", kind, "auto", recipe, True, counts)
        assert random == resolve_protocol("finetune", kind, "random", recipe, True)
    assert SHORT == 2500


def test_what_a_task_states_is_not_chosen_from_a_grid():
    cls = find_protocol("finetune", "classification")
    small = resolve_protocol("finetune", "classification", "small", {}, False)
    assert len(small._choices) == len(cls.presets["small"]["base_lr_grid"]) * 2
    stated = resolve_protocol("finetune", "classification", "small", {"epochs": 7}, False)
    assert {epochs for _, epochs in stated._choices} == {7} and len(stated._choices) == 3
    assert len(stated.base_lr_grid) == 3


def test_a_grid_is_chosen_on_val_and_refitted():
    grid = {"base_lr_grid": [1e-9, 1e-2], "epochs_grid": [1, 3], "warmup_epochs": 0.0}
    done, predicted, bench = trained(n=150, **grid)
    names = list(bench.stages.counted)
    assert [name for name in names if name.startswith("trying")] == [f"trying {i} of 4" for i in range(1, 5)]
    scores = done.arrays["val_top1"]
    assert len(scores) == 4 and done.chosen["val_top1"] == scores.max()
    assert (done.chosen["base_lr"], done.chosen["epochs"]) == (1e-2, [1, 3][scores.argmax() % 2])
    assert len(done.arrays["train_loss"]) == done.chosen["epochs"]
    alone = trained(n=150, base_lr=1e-2, epochs=done.chosen["epochs"], warmup_epochs=0.0)[1]
    assert np.array_equal(predicted.scores, alone.scores)  # the refit is a run of its own
    recipe = build_protocol(bench.run.protocol, "classification")
    work = recipe.images({"train": 150, "val": 50, "test": 20})
    assert work.train == 200 * 3 + 150 * 2 * (1 + 3)


def test_a_pair_that_diverges_is_not_chosen():
    grid = {"base_lr_grid": [1e30, 1e-2], "epochs": 2, "warmup_epochs": 0.0}
    done = trained(n=100, **grid)[0]
    assert done.chosen["base_lr"] == 1e-2 and done.arrays["val_top1"][0] == -np.inf
    with pytest.raises(BenchError, match="diverged"):
        trained(n=100, **{**grid, "base_lr_grid": [1e30, 1e29]})


# -- heads ----------------------------------------------------------------------------------------------


def test_the_head_starts_as_the_linear_probe():
    """Before the first step the network predicts what the probe does."""
    bench, data = bench_for(digits(head_init="linear", epochs=1, base_lr=1e-12, min_lr=0.0))
    splits = splits_of(data, 200)
    done = build_protocol(bench.run.protocol, "classification").fit(bench, splits["train"], splits["val"])
    probe = Linear().fit(bench, splits["train"], splits["val"])
    theirs = probe.predict(splits["test"]).scores
    ours = torch.from_numpy(done.predict(splits["test"]).scores).log_softmax(1).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_a_probe_of_fewer_classes_leaves_the_others_unlikely():
    weight, bias = head_of_classes(np.ones((1, 3)), np.array([2.0]), np.array([1, 4]), 6)
    assert weight.shape == (6, 3) and weight[4] - weight[1] == pytest.approx(np.ones(3))
    assert bias[4] - bias[1] == pytest.approx(2.0)
    assert (bias[[0, 2, 3, 5]] < bias[[1, 4]].min() - 10).all()


def test_a_head_that_is_not_one_layer_is_refused():
    network = timm.create_model("test_vit", num_classes=3)
    network.head = torch.nn.Sequential(torch.nn.Linear(64, 3))
    with pytest.raises(BenchError, match="head_init = 'linear' needs a head that is one linear layer"):
        set_head(network, np.zeros((3, 64)), np.zeros(3))


def test_the_head_is_trained_alone_at_first(monkeypatch):
    states = []
    real = trainer.Trainer.finish

    def finish(self):
        real(self)
        states.append((self.name, copy.deepcopy(self.given.state_dict())))

    monkeypatch.setattr(trainer.Trainer, "finish", finish)
    bench, data = bench_for(digits(head_epochs=2, epochs=1, base_lr=1e-2, warmup_epochs=0.0))
    recipe = build_protocol(bench.run.protocol, "classification")
    before = build_network(bench, recipe)[0].state_dict()
    splits = splits_of(data, 100)
    recipe.fit(bench, splits["train"], splits["val"])
    (first, warmed), (second, after) = states
    assert (first, second) == ("fine-tuning: the head", "fine-tuning")
    changed = {name for name in before if not torch.equal(before[name], warmed[name])}
    assert changed == {"head.weight", "head.bias"}
    learnt = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(learnt) > 30


# -- averaged weights, and weights that are saved --------------------------------------------------------


def test_averaged_weights_are_the_result():
    """With a decay of 0.5, those of two steps are the mean of weights before the last step and after it."""
    kept = []
    for ema_decay in (0.0, 0.5):
        bench, data = bench_for(digits(ema_decay=ema_decay, epochs=3, batch_size=32, base_lr=1e-3))
        splits = splits_of(data, 100)
        recipe = build_protocol(bench.run.protocol, "classification")
        done = recipe.fit(bench, splits["train"], splits["val"])
        kept.append(done.predict(splits["test"]).scores)
    assert not np.array_equal(*kept)
    assert np.corrcoef(kept[0].ravel(), kept[1].ravel())[0, 1] > 0.9


def test_saved_weights_are_a_checkpoint(run, tmp_path):
    args = ["-m", "test_vit", "--weights", "random", "-t", "digits", "--results", tmp_path]
    run("run", *args, "-p", "finetune", "--set", "finetune.epochs=1", "--save-weights")
    (path,) = (tmp_path / "weights").glob("*.pth")
    (file,) = (tmp_path / "runs").glob("*.json")
    record = json.loads(file.read_text())
    assert path.stem == record["run_id"]
    args[3] = path
    said = run("run", *args, "-p", "knn", "--report").output
    assert path.name.removesuffix(".pth") in said
    state = torch.load(path)
    assert state["run"] == record["identity"]
    bench, _ = bench_for(digits(), model=ModelSpec(name="v", arch="test_vit"))
    network = create(bench.run.model, (32, 32), 10)
    network.load_state_dict(state["model"])
    assert classifier(network).weight.abs().sum() > 0
