"""`show`: pictures of what runs predicted, for all kinds of task."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from dense import small_scenes
from PIL import Image

from mixmim_bench.cli import main
from mixmim_bench.data.dataset import open_task
from mixmim_bench.errors import BenchError
from mixmim_bench.report.pictures import Drawn, color_of, picture
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.taskfile import read_task

TASKS = Path(__file__).parents[1] / "tasks"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of one run of each kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXMIM_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("results")
        short = [
            f"--set={name}.{each}" for name in ("linear", "frozen") for each in ("steps=2", "warmup_steps=1")
        ]
        arguments = ["run", "-m", "test_resnet", "-p", "linear", "--results", str(folder)]
        names = ("digit-scenes-seg", "digit-scenes-det")
        scenes = [each for name in names for each in ("-t", str(small_scenes(folder, name)))]
        for tasks in (["-t", "digits"], [*scenes, *short]):
            result = CliRunner().invoke(main, [*arguments, *tasks])
            assert result.exit_code == 0, result.output
        yield folder


def test_every_run_gets_a_picture_that_the_leaderboard_links(results):
    board = (results / "leaderboard.md").read_text()
    records = RunStore(results).finished()
    assert len(records) == 3
    for run_id, record in records.items():
        with Image.open(RunStore(results).picture_of(run_id)) as image:
            assert image.width > 1000 and image.height > 500
        assert f"({record.weights}) · {record.task} · {record.protocol}](pictures/{run_id}.png)" in board


@pytest.mark.parametrize("task", ["digits", "digit-scenes-seg", "digit-scenes-det"])
def test_show_draws_again(results, task, tmp_path):
    out = tmp_path / "seen.png"
    named = task if task == "digits" else str(results / f"small-{task}.toml")
    arguments = [
        "show",
        named,
        "-m",
        "test_resnet",
        "--results",
        str(results),
        "--images",
        "2",
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert str(out) in result.output
    with Image.open(out) as image:
        assert np.asarray(image).std() > 10


def test_weights_of_a_model_choose_among_its_runs(results, tmp_path):
    arguments = ["show", "digits", "-p", "linear", "--results", str(results), "--images", "2", "-m"]
    result = CliRunner().invoke(main, [*arguments, "test_resnet=random", "--out", str(tmp_path / "seen.png")])
    assert result.exit_code == 0 and "test_resnet (random init)" in result.output, result.output
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "other.pth")
    result = CliRunner().invoke(main, [*arguments, f"test_resnet={tmp_path / 'other.pth'}"])
    assert result.exit_code == 2, result.output
    assert f"mixmim-bench run -m test_resnet={tmp_path / 'other.pth'} -t digits" in result.output
    result = CliRunner().invoke(main, [*arguments, f"test_resnet={tmp_path / 'none.pth'}"])
    assert result.exit_code == 2 and "no such file" in result.output


def test_without_a_run_show_says_how_to_make_one(results):
    arguments = ["show", "digits", "-m", "resnet50", "-p", "linear", "--results", str(results)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "mixmim-bench run -m resnet50 -t digits -p linear" in result.output


def test_other_images_than_those_of_the_run_are_refused(results):
    store = RunStore(results)
    record = next(record for record in store.finished().values() if record.task == "digits")
    data = open_task(read_task(TASKS / "digits.toml"))
    other = dataclasses.replace(record, identity={**record.identity, "data": "0" * 16})
    with pytest.raises(BenchError, match="differ from those of the run"):
        picture(other, store.arrays(record.run_id), data)


def test_the_images_that_are_drawn_are_those_whose_predictions_were_kept(results):
    store = RunStore(results)
    record = next(record for record in store.finished().values() if record.task == "small-digit-scenes-seg")
    data = open_task(read_task(results / "small-digit-scenes-seg.toml"))
    arrays = store.arrays(record.run_id)
    rows = Drawn(data.parts["test"], data.classes, arrays).rows()
    assert rows == [0, 2, 4, 6, 9, 11, 13, 15]
    assert all(arrays[f"shown_{row}"].shape == (128, 128) for row in rows)


def test_colours_of_neighbouring_classes_differ():
    for label in range(20):
        assert np.abs(np.subtract(color_of(label), color_of(label + 1))).max() > 60


def test_records_stay_small(results):
    for path in (results / "runs").glob("*.json"):
        assert len(path.read_text()) < 5_000 and not json.loads(path.read_text())["error"]
