"""Dense tasks from backbone to record: pyramids, training, evaluation, cost, statistics, resuming."""

import dataclasses
import json
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from dense import small_scenes, write_ade, write_coco, write_easy_boxes, write_easy_maps
from PIL import Image

from mixmim_bench import facts
from mixmim_bench.cli import main
from mixmim_bench.counting import count_by_fvcore, count_module
from mixmim_bench.data.dataset import open_task
from mixmim_bench.data.objects import Objects, Ragged
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import BenchError
from mixmim_bench.machine import Machine
from mixmim_bench.models.build import build
from mixmim_bench.models.detector import Detector, in_image
from mixmim_bench.models.pyramid import build_pyramid, dense_arguments, neck_of
from mixmim_bench.models.segmenter import LinearMaps, LinearSegmenter, UperNet
from mixmim_bench.progress import Silent
from mixmim_bench.protocols import build_protocol, find_protocol, resolve_protocol
from mixmim_bench.protocols.dense import layerwise
from mixmim_bench.protocols.detections import rows_to_train
from mixmim_bench.protocols.label_maps import best_classes, slide
from mixmim_bench.registry import find_model
from mixmim_bench.scoring.predictions import restore
from mixmim_bench.specs import RANDOM, ModelSpec
from mixmim_bench.suite.execute import execute, open_run
from mixmim_bench.suite.plan import ModelChoice, TaskChoice, choose_protocol, plan
from mixmim_bench.suite.taskfile import read_task
from mixmim_bench.training import trainer
from mixmim_bench.training.contract import Schedule
from mixmim_bench.training.trainer import _scheduler

TASKS = Path(__file__).parents[1] / "tasks"
SMALL = ModelSpec(
    name="small",
    arch="mixmim_base",
    kwargs={"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXMIM_BENCH_CACHE", str(tmp_path / "cache"))


def pyramid_of(name, size=(64, 96), **options):
    model = name if isinstance(name, ModelSpec) else find_model(name)
    return build_pyramid(model, RANDOM, size, 0, arguments=dense_arguments(model), **options)


# -- pyramids ----------------------------------------------------------------------------------------

BACKBONES = [
    SMALL,
    "resnet18",
    "swin_tiny_patch4_window7_224",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "vit_small_patch14_dinov2",
    "beit_base_patch16_224",
    "test_efficientnet",
]


@pytest.mark.parametrize("name", BACKBONES, ids=lambda each: getattr(each, "name", each))
def test_any_backbone_yields_maps_of_four_strides(name):
    pyramid = pyramid_of(name).eval()
    maps = neck_of(pyramid)(pyramid(torch.randn(1, 3, 64, 96)))
    padded = pyramid.pad(torch.empty(1, 3, 64, 96)).shape[-2:]
    for each, stride in zip(maps, (4, 8, 16, 32), strict=True):
        assert tuple(each.shape[-2:]) == tuple(side // stride for side in padded)


@pytest.mark.parametrize("name", [SMALL, "resnet18", "vit_tiny_patch16_224"], ids=str)
def test_every_parameter_that_is_trained_gets_a_gradient(name):
    pyramid = pyramid_of(name)
    network = UperNet(pyramid.train(), 3, width=16, dropout=0.1, auxiliary=True, seed=0).train()
    first, second = network(torch.randn(2, 3, 64, 64))
    (first.sum() + second.sum()).backward()
    without = [key for key, value in network.named_parameters() if value.requires_grad and value.grad is None]
    assert not without


def test_maps_are_those_of_timm():
    pyramid = pyramid_of("resnet18").eval()
    torch.manual_seed(0)
    twin = build(find_model("resnet18"), RANDOM, (224, 224), 0)
    theirs = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4))
    theirs.load_state_dict(twin.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for ours, other in zip(pyramid(images), theirs.eval()(images), strict=True):
            torch.testing.assert_close(ours, other)


def test_networks_without_a_pyramid_say_so():
    with pytest.raises(BenchError, match=r"strides \[16, 32, 64\], and dense tasks need 4, 8, 16, 32"):
        pyramid_of("levit_128s", size=(224, 224))


def test_a_frozen_pyramid_stays_in_evaluation_mode():
    pyramid = pyramid_of("resnet18", frozen=True).train()
    before = pyramid.backbone.bn1.running_mean.clone()
    maps = pyramid(torch.randn(2, 3, 64, 64))
    assert not pyramid.training and not maps[0].requires_grad
    assert torch.equal(before, pyramid.backbone.bn1.running_mean)


def test_mixmim_takes_any_size_and_needs_no_padding_where_windows_fit():
    """At its own size the dense network is the plain one; larger images keep its windows."""
    pyramid = pyramid_of(SMALL, size=(224, 224)).eval()
    plain = build(SMALL, RANDOM, (224, 224), 0).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        ours = pyramid(images)[-1]
        theirs = plain.forward_features(images).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
        wide = torch.randn(3, 3, 96, 352)
        every = pyramid(wide)
        for place in range(3):
            for alone, together in zip(pyramid(wide[place : place + 1]), every, strict=True):
                torch.testing.assert_close(alone[0], together[place], atol=1e-5, rtol=1e-4)
    assert pyramid.computed_size((1000, 600)) == (1024, 608)


def test_maps_of_a_plain_network_cover_the_same_pixels():
    """528 pixels are 33 cells of 16, which are no whole cells of 32: images are padded to 544."""
    pyramid = pyramid_of("vit_tiny_patch16_224", size=(528, 64)).eval()
    maps = neck_of(pyramid)(pyramid(torch.randn(1, 3, 528, 64)))
    assert [each.shape[-2] for each in maps] == [136, 68, 34, 17]


def test_the_size_that_is_computed_suits_the_patches():
    arguments, size = facts.as_pyramid(find_model("vit_small_patch14_dinov2"), (512, 512))
    assert size == (448, 448) and arguments == {"dynamic_img_size": True}
    assert facts.as_pyramid(SMALL, (500, 500)) == ({"dynamic_img_size": True}, (512, 512))
    assert facts.as_pyramid(find_model("resnet18"), (512, 512)) == ({}, (512, 512))


def test_learning_rates_fall_by_layer_in_the_backbone_only():
    pyramid = pyramid_of(SMALL)
    network = UperNet(pyramid, 3, width=16, dropout=0.0, auxiliary=True, seed=0)
    optimizer = layerwise(
        network, Schedule(steps=10, batch_size=2, lr=1.0, layer_decay=0.5, weight_decay=0.1)
    )
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    scale = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            scale[names[id(parameter)]] = group["lr_scale"]
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
    assert len(scale) == len(list(network.parameters()))
    assert scale["head.classifier.weight"] == scale["auxiliary.0.weight"] == 1.0
    assert scale["pyramid.backbone.layers.3.blocks.0.attn.qkv.weight"] == 0.5
    assert scale["pyramid.backbone.layers.0.blocks.0.attn.qkv.weight"] == 0.5**4


def test_poly_and_step_schedules():
    def rates(**changes):
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        schedule = Schedule(steps=20, batch_size=1, lr=1.0, **changes)
        scheduler = _scheduler(optimizer, schedule, 20, 7)
        found = []
        for step in range(20):
            scheduler.step_update(step)
            found.append(optimizer.param_groups[0]["lr"])
        return found

    poly = rates(decay="poly", warmup_steps=4)
    np.testing.assert_allclose(poly[:4], [0, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(poly[4:], 1 - np.arange(16) / 16)
    steps = rates(decay="steps", milestones=(0.5, 0.75), warmup_steps=2)
    np.testing.assert_allclose(steps, [0, 0.5, *[1.0] * 8, *[0.1] * 5, *[0.01] * 5], rtol=1e-6)


# -- heads -------------------------------------------------------------------------------------------


def test_one_convolution_on_enlarged_maps_is_the_sum_of_enlarged_logits():
    pyramid = pyramid_of("test_convnext", size=(64, 64), frozen=True).eval()
    heads = LinearMaps(pyramid.widths, [(0, 1, 2, 3)], 5, 0).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = pyramid(images)
        head = heads.heads[0]
        side_by_side = torch.cat(
            [
                torch.nn.functional.interpolate(norm(each), (16, 16), mode="bilinear")
                for norm, each in zip(head["norms"], maps, strict=True)
            ],
            dim=1,
        )
        weight = torch.cat([each.weight for each in head["maps"]], dim=1)
        expected = torch.nn.functional.conv2d(side_by_side, weight, head["maps"][0].bias)
        torch.testing.assert_close(heads.of_head(0, maps), expected, atol=1e-4, rtol=1e-4)
        network = LinearSegmenter(pyramid, heads, (64, 64)).eval()
        torch.testing.assert_close(network(network.stored(images)), network(images))


def test_sliding_windows_average_what_they_see():
    torch.manual_seed(0)
    image = torch.randn(3, 20, 33)
    bench = type("Bench", (), {"machine": Machine(device="cpu", batch_size=3)})()
    pointwise = torch.nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        whole = pointwise(image[None])[0]
        torch.testing.assert_close(slide(pointwise, image, 16, 10, bench), whole, atol=1e-5, rtol=1e-4)


def test_the_best_class_of_many_is_found_in_pieces():
    logits = torch.randn(40, 5, 7)
    grown = torch.nn.functional.interpolate(logits[None], (11, 13), mode="bilinear")[0]
    assert torch.equal(best_classes(logits, (11, 13)), grown.argmax(0))


@pytest.fixture(scope="module")
def detector():
    model = find_model("test_convnext")
    pyramid = build_pyramid(model, RANDOM, (64, 64), 0, arguments={})
    return Detector(
        pyramid, 3, masks=True, width=16, box_width=16, proposals=20, sampled=8, score_threshold=0.0
    )


def test_padding_of_a_batch_does_not_reach_the_other_images(detector):
    """An image alone, and in a square that it shares with nothing, give the same detections."""
    torch.manual_seed(0)
    image = torch.randn(1, 3, 64, 64)
    square = torch.nn.functional.pad(image, (0, 32, 0, 32))
    size = [{"size": torch.tensor([64, 64])}]
    with torch.no_grad():
        (alone,), (padded,) = detector.eval()(image, size), detector(square, size)
    for name, values in alone.items():
        torch.testing.assert_close(values, padded[name])


def test_images_without_objects_can_be_learnt(detector):
    target = {
        "size": torch.tensor([64, 64]),
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 64, 64, dtype=torch.uint8),
    }
    losses = detector.train()(torch.randn(2, 3, 64, 64), [target] * 2)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_detections_move_to_the_image_as_it_was():
    masks = torch.ones(1, 1, 28, 28)
    boxes, pasted = in_image({"boxes": torch.tensor([[8.0, 4, 24, 12]]), "masks": masks}, (32, 32), (64, 128))
    assert boxes.tolist() == [[32.0, 8.0, 96.0, 24.0]]
    rows, columns = np.flatnonzero(pasted[0].any(1)), np.flatnonzero(pasted[0].any(0))
    assert abs(rows[0] - 8) <= 1 and abs(rows[-1] - 23) <= 1 and abs(columns[-1] - 95) <= 2


def test_both_counters_agree_on_every_head(detector):
    for name in (SMALL, "vit_tiny_patch16_224", "resnet18"):
        pyramid = pyramid_of(name, size=(64, 64))
        shapes = [(1, *shape) for shape in pyramid.shapes((64, 64))]
        upernet = UperNet(pyramid, 5, width=16, dropout=0.1, auxiliary=True, seed=0)
        linear = LinearMaps(pyramid.widths, [(0, 1, 2, 3)], 5, 0)
        for module in (upernet.head, linear):
            by_torch, by_fvcore = count_module(module, [shapes])
            assert by_torch.macs == by_fvcore.macs > 0 and not by_fvcore.uncounted
    for module, shapes, times in detector.parts((64, 64)):
        by_torch, by_fvcore = count_module(module, shapes)
        assert by_torch.macs == by_fvcore.macs > 0 and times >= 1
    # of the classifier by hand: a 1 x 1 convolution of 16 channels to 5 on 16 x 16 cells
    by_torch, _ = count_module(upernet.head.classifier, [(1, 16, 16, 16)])
    assert by_torch.macs == 16 * 5 * 16 * 16


def test_both_counters_agree_on_dense_backbones():
    for name in (SMALL, find_model("vit_tiny_patch16_224")):
        arguments, size = facts.as_pyramid(name, (96, 160))
        network = dataclasses.replace(name, kwargs={**name.kwargs, **arguments})
        built = build(network, RANDOM, size, 0, 1000)
        assert facts.count_gmacs(network, size) * 1e9 == pytest.approx(
            count_by_fvcore(built, size).total, rel=2e-3
        )


# -- LVIS's repetition -------------------------------------------------------------------------------


def test_images_with_rare_classes_are_repeated():
    rows = [np.array([0]), np.array([0]), np.array([0, 1]), np.empty(0, int)] * 100
    rows = [row if place < 4 else row[row == 0] for place, row in enumerate(rows)]

    def of(values, dtype, width=()):
        return Ragged.of([np.array(each, dtype=dtype).reshape(-1, *width) for each in values], dtype, width)

    objects = Objects(
        sizes=np.full((400, 2), 50),
        boxes=of([[[1, 1, 9, 9]] * len(row) for row in rows], np.float64, (4,)),
        labels=of(rows, np.int64),
        crowd=of([[False] * len(row) for row in rows], bool),
        areas=of([[81.0] * len(row) for row in rows], np.float64),
        segments=None,
    )
    assert len(rows_to_train(objects, 0.0, 2, 0)) == 300  # without those that have no object
    repeated = rows_to_train(objects, 0.04, 2, 0)
    # class 1 is in 1 of 400 images: sqrt(0.04 / 0.0025) = 4 times
    assert (repeated == 2).sum() == 4 and len(repeated) == 303


# -- runs --------------------------------------------------------------------------------------------


def run_of(task, protocol, arch="test_resnet", preset="auto", roots=None, **changes):
    model = find_model(arch)
    data = open_task(task, roots or DataRoots())
    choice = choose_protocol(task, protocol, preset, changes=changes)
    (planned,) = plan(
        [ModelChoice(spec=model, weights=RANDOM, preprocessing=facts.preprocessing(model))],
        [TaskChoice(spec=task, data=data.source, counts=data.counts, protocols=[choice])],
        [0],
        "float32",
    )
    bench = open_run(planned.run, data, Machine(device="cpu"), Silent())
    return execute(planned.run, data, bench), bench


SHORT = {"steps": 3, "warmup_steps": 1}


def test_a_segmentation_run_keeps_what_its_scores_are_made_of(tmp_path):
    task = read_task(small_scenes(tmp_path, "digit-scenes-seg"))
    (record, arrays), _ = run_of(task, "linear", **SHORT)
    assert set(record.scores) == {"miou", "macc", "aacc"} and not record.error
    assert record.chosen["stages"] in ("last", "all") and "val_miou" in record.chosen
    kept = restore("segmentation", "miou", arrays)
    assert len(kept.ids) == 16 and arrays["pixels"].shape == (16, 3, 11)
    assert sum(name.startswith("shown_") for name in arrays) == 8
    assert record.counts["head_params"] > 0 and record.counts["head_macs"] > 0
    assert record.data_bytes and record.counts["test_in_train_or_val"] == 0
    assert len(record.to_json()) < 5_000


def test_stored_maps_and_images_train_the_same_head(tmp_path, monkeypatch):
    from mixmim_bench.features import maps

    task = read_task(small_scenes(tmp_path, "digit-scenes-seg"))
    (stored, arrays), _ = run_of(task, "linear", **SHORT)
    monkeypatch.setattr(maps, "SHARE_OF_MEMORY", 0.0)
    (read, others), _ = run_of(task, "linear", **SHORT)
    np.testing.assert_allclose(arrays["fit_train_loss"], others["fit_train_loss"], rtol=1e-4)
    assert stored.scores["miou"]["value"] == pytest.approx(read.scores["miou"]["value"], abs=1e-3)


def test_a_detection_run_keeps_what_its_scores_are_made_of(tmp_path):
    task = read_task(small_scenes(tmp_path, "digit-scenes-det"))
    (record, arrays), _ = run_of(task, "frozen", **SHORT, batch_size=2)
    assert set(record.scores) == set(task.metrics)
    assert len(restore("detection", "ap_mask", arrays).ids) == 16
    assert len(record.to_json()) < 5_000
    assert record.identity["protocol"]["name"] == "frozen"


def test_a_set_without_masks_trains_boxes_and_refuses_scores_of_masks(tmp_path):
    write_coco(tmp_path, masks=False, images=6)
    text = (
        'schema = 1\nversion = 1\nkind = "detection"\ntitle = "boxes"\nnum_classes = 3\nmetrics = [METRICS]\n'
        '[data]\nroot = "."\nlayouts = ["coco:COCO"]\n[data.options]\nannotations = { train2017 = '
        '"annotations/instances_train2017.json", val2017 = "annotations/instances_val2017.json" }\n'
        '[image]\nsize = 64\n[split]\ntrain = "train2017[:50%]"\nval = "train2017[50%:]"\ntest = "val2017"\n'
    )
    path = tmp_path / "boxes.toml"
    small = {"width": 16, "box_width": 16, "proposals": 20, "sampled": 8, **SHORT, "batch_size": 2}
    path.write_text(text.replace("METRICS", '"ap_box", "ap_box_50"'))
    (record, _), _ = run_of(read_task(path), "finetune", **small)
    assert set(record.scores) == {"ap_box", "ap_box_50"}
    path.write_text(text.replace("METRICS", '"ap_box", "ap_mask"'))
    with pytest.raises(BenchError, match="have no masks, which ap_mask need"):
        run_of(read_task(path), "finetune", **small)


def test_ade20k_is_segmented_by_sliding_windows(tmp_path):
    write_ade(tmp_path / "ade20k", n=4, size=(40, 90))
    text = (TASKS / "ade20k.toml").read_text()
    text = text.replace("training = 20210, validation = 2000", "training = 4, validation = 4")
    text = text.replace("95%", "50%").replace("size = 512", "size = 32")
    (tmp_path / "ade20k.toml").write_text(text)
    task = read_task(tmp_path / "ade20k.toml")
    (record, arrays), _ = run_of(task, "finetune", roots=DataRoots(tmp_path), **SHORT, width=16, batch_size=2)
    assert arrays["pixels"].shape == (4, 3, 150)
    labels = [
        np.asarray(Image.open(path))
        for path in sorted((tmp_path / "ade20k/annotations/validation").iterdir())
    ]
    assert arrays["pixels"][:, 2].sum() == sum((each > 0).sum() for each in labels)  # all at full resolution
    assert record.scores["aacc"]["n"] == 4


def test_an_unreadable_image_is_an_error_or_skipped(tmp_path):
    write_ade(tmp_path / "ade20k", n=4, size=(40, 40))
    (tmp_path / "ade20k" / "images" / "validation" / "ADE_valid_00000001.jpg").write_bytes(b"")
    text = (TASKS / "ade20k.toml").read_text()
    text = text.replace("training = 20210, validation = 2000", "training = 4, validation = 4")
    text = text.replace("95%", "50%").replace("size = 512", "size = 32")
    path = tmp_path / "ade20k.toml"
    small = {**SHORT, "width": 16, "batch_size": 2, "roots": DataRoots(tmp_path)}
    path.write_text(text)
    with pytest.raises(BenchError, match=r"1 of 4 images cannot be read: .*ADE_valid_00000001\.jpg"):
        run_of(read_task(path), "finetune", **small)
    path.write_text(text.replace("[data]\n", "[data]\nskip_unreadable = true\n"))
    (record, arrays), _ = run_of(read_task(path), "finetune", **small)
    assert record.counts["skipped_test"] == 1 and len(arrays["ids"]) == 3


def test_every_preset_of_dense_protocols_resolves():
    for kind, name in (("segmentation", "linear"), ("segmentation", "finetune"), ("detection", "frozen")):
        cls = find_protocol(name, kind)
        for preset in cls.presets:
            protocol = resolve_protocol(name, kind, preset, {}, random_weights=False)
            assert build_protocol(json.loads(json.dumps(protocol.to_dict())), kind) == protocol


def test_the_warm_up_of_a_short_training_is_shortened(tmp_path):
    task = read_task(small_scenes(tmp_path, "digit-scenes-det", test=4))
    (record, _), _ = run_of(task, "frozen", steps=5, batch_size=2, warmup_steps=461)
    assert any("warm-up of 0 instead of 461 steps, of 5 in all" in note for note in record.notes)


def test_a_network_without_a_pyramid_fails_alone(tmp_path):
    task, model = str(small_scenes(tmp_path, "digit-scenes-seg", test=8)), tmp_path / "levit.toml"
    model.write_text(
        'schema = 1\narch = "levit_128s"\nweights = "random"\n'
        "[arguments]\nembed_dim = [32, 48, 64]\ndepth = [1, 1, 1]\n"
    )
    arguments = ["run", "-m", "test_resnet", "-m", str(model), "-t", task, "-p", "linear"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        short = ["--set", "linear.steps=2", "--set", "linear.warmup_steps=1"]
        result = CliRunner().invoke(main, [*arguments, *short, "--no-report", "--results", str(tmp_path)])
    assert result.exit_code == 1, result.output
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")]
    errors = {record["model"]: record["error"] for record in records}
    assert not errors["test_resnet"] and "dense tasks need 4, 8, 16, 32" in errors["levit"]


def test_protocols_that_a_kind_lacks_are_left_out(tmp_path):
    arguments = ["run", "-m", "test_vit", "-t", "digits", "-t", "digit-scenes-seg", "--dry-run"]
    result = CliRunner().invoke(main, [*arguments, "-p", "knn", "--results", str(tmp_path)])
    assert result.exit_code == 0 and "digit-scenes-seg: no knn for segmentation tasks" in result.output
    result = CliRunner().invoke(
        main, [*arguments[:3], *arguments[5:], "-p", "knn", "--results", str(tmp_path)]
    )
    assert result.exit_code == 2 and "no protocol 'knn' for segmentation tasks" in result.output


def test_linear_means_frozen_for_detection(tmp_path):
    arguments = ["run", "-m", "test_resnet", "-s", "embedded-dense", "--dry-run", "--results", str(tmp_path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "digit-scenes-det: frozen instead of linear, which detection tasks do not have" in result.output
    assert "no linear" not in result.output
    result = CliRunner().invoke(main, [*arguments, "--set", "frozen.steps=7"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("name", "protocol", "changes"),
    [
        ("digit-scenes-seg", "finetune", {"batch_size": 4}),
        ("digit-scenes-det", "finetune", {"batch_size": 2}),
    ],
)
def test_an_interrupted_training_continues_with_the_same_result(
    name, protocol, changes, tmp_path, monkeypatch
):
    """With SIGTERM in the second of four steps."""
    task = read_task(small_scenes(tmp_path, name))
    short = {**changes, "steps": 4, "warmup_steps": 1}
    (_, expected), bench = run_of(task, protocol, **short)
    bench.finish()
    steps = []
    real = trainer.Trainer._step

    def step(self, batch, update):
        steps.append(update)
        if steps == [0, 1]:
            signal.raise_signal(signal.SIGTERM)
        return real(self, batch, update)

    monkeypatch.setattr(trainer.Trainer, "_step", step)
    with pytest.raises(SystemExit):
        run_of(task, protocol, **short)
    (_, arrays), _ = run_of(task, protocol, **short)
    assert steps == [0, 1, 2, 3]
    for key in ("fit_train_loss", "pixels", "scores", "box_hits"):
        assert key not in expected or np.array_equal(arrays[key], expected[key]), key


LEARNING = {"steps": 100, "warmup_steps": 5, "batch_size": 8}
SEGMENTER = {"width": 24, "evaluation": "whole", "photometric": False}
DETECTOR = {"width": 32, "box_width": 64, "proposals": 50, "sampled": 16, "jitter": [0.9, 1.1]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "recipe", "metric", "least"),
    [(write_easy_maps, SEGMENTER, "miou", 0.4), (write_easy_boxes, DETECTOR, "ap_box_50", 0.4)],
    ids=["seg", "det"],
)
def test_a_short_finetuning_learns(write, recipe, metric, least, tmp_path):
    """DENSE.md has the scores of whole tasks."""
    arguments = ["run", "-m", "test_resnet", "--weights", "random", "-t", str(write(tmp_path))]
    for name, value in {**LEARNING, **recipe}.items():
        arguments += ["--set", f"finetune.{name}={json.dumps(value)}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(main, [*arguments, "-p", "finetune", "--results", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "runs").glob("*.json")
    score = json.loads(path.read_text())["scores"][metric]
    assert score["low"] > score["guess"] and score["value"] > least, score
