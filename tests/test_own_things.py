"""What users bring: model files, checkpoints, subsets, smoke runs, suite files, and their results."""

import dataclasses
import json
import shutil
import tomllib
from pathlib import Path

import copies
import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from conftest import TASK, write_digits

from mixmim_bench import facts
from mixmim_bench.cli import main
from mixmim_bench.cli.suitefile import MACHINE, RESULTS, SET
from mixmim_bench.data.dataset import open_task
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import BenchError, TaskFileError
from mixmim_bench.inference import get_model
from mixmim_bench.modelfile import model_and_weights, open_model, read_model
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.selection import load_tasks, select_tasks

# -- models -----------------------------------------------------------------------------------------

MODEL = """\
schema = 1
arch = "test_vit"
weights = "weights.pth"
image_size = 64
mean = [0.1, 0.2, 0.3]
std = [0.4, 0.5, 0.6]
interpolation = "bilinear"
crop_pct = 0.8
crop_mode = "squash"
reference = "ours"
[arguments]
depth = 2
"""


@pytest.fixture
def my_model(tmp_path):
    network = timm.create_model("test_vit", depth=2, img_size=64, num_classes=3)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    path = tmp_path / "mine_too.toml"
    path.write_text(MODEL)
    return path


def test_a_model_file_is_a_model_everywhere(run, tmp_path, my_model, my_task):
    model = open_model(str(my_model))
    assert (model.name, model.arch, model.kwargs) == ("mine_too", "test_vit", {"depth": 2})
    preprocessing = facts.preprocessing(model)
    assert preprocessing.size == (64, 64)
    assert preprocessing.mean == (0.1, 0.2, 0.3)
    assert (preprocessing.interpolation, preprocessing.crop_pct, preprocessing.crop_mode) == (
        "bilinear", 0.8, "squash",
    )  # fmt: skip
    run("run", "-m", my_model, "-t", my_task, "-p", "linear", "-p", "own-head", "--results", tmp_path / "r")
    records = RunStore(tmp_path / "r").records()
    assert {record.protocol for record in records} == {"linear", "own-head"}
    for record in records:
        assert record.model == "mine_too"
        assert record.identity["kwargs"] == {"depth": 2}
        assert record.identity["preprocessing"]["std"] == [0.4, 0.5, 0.6]
        assert record.weights.startswith("weights.pth (")
    ready = get_model(str(my_model), pretrained=True)
    assert ready.num_classes == 3
    assert ready.preprocessing.mean == (0.1, 0.2, 0.3)
    picture = next((tmp_path / "images" / "val").rglob("*.png"))
    assert "class" in run("predict", "-m", my_model, picture).output
    assert "mine_too" in run("doctor", "-m", my_model, "-t", my_task).output
    drawn = run("show", my_task, "-m", my_model, "--results", tmp_path / "r").output
    assert drawn.count(".png") == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("schema = 1", "schema = 2", "schema: is 2, and this version reads schema 1"),
        ('arch = "test_vit"', 'arch = "test_vitt"', "arch: no model 'test_vitt'; did you mean test_vit"),
        ('"weights.pth"', '"none.pth"', "weights: no file"),
        ("image_size = 64", "image_size = [64]", "image_size: must be a side in pixels or [height, width]"),
        ("image_size = 64", "image_size = true", "image_size: must be a side"),
        ("mean = [0.1, 0.2, 0.3]", "mean = [123.6, 116.2, 103.5]", "divide values of 0 to 255 by 255"),
        ("std = [0.4, 0.5, 0.6]", "std = [0.4, 0.0, 0.6]", "std: is"),
        ("std = [0.4, 0.5, 0.6]", "std = 0.5", "std: must be three numbers"),
        ('"bilinear"', '"bicubik"', "interpolation: no 'bicubik'; did you mean bicubic"),
        ('"squash"', '"centre"', "crop_mode: no 'centre'; did you mean center"),
        ("crop_pct = 0.8", "crop_pct = 1.2", "crop_pct: must be above 0"),
        ("crop_pct", "crop_pc", "crop_pc: unknown key; did you mean crop_pct"),
        ("depth = 2", "dept = 2", "cannot be built"),
    ],
)
def test_what_is_wrong_with_a_model_file_is_named(run, my_model, my_task, old, new, said):
    assert MODEL.count(old) == 1
    my_model.write_text(MODEL.replace(old, new))
    output = run("run", "-m", my_model, "-t", my_task, "-p", "linear", code=2).output
    assert said in output
    assert "mine_too" in output


def test_a_model_file_is_not_called_like_another_model(tmp_path):
    (tmp_path / "mixmim-b.toml").write_text('schema = 1\narch = "test_vit"\n')
    with pytest.raises(TaskFileError, match="a registered model is called 'mixmim-b'; rename the file"):
        read_model(tmp_path / "mixmim-b.toml")
    (tmp_path / "a@b.toml").write_text('schema = 1\narch = "test_vit"\n')
    with pytest.raises(TaskFileError, match="is not a name for a model"):
        read_model(tmp_path / "a@b.toml")
    (tmp_path / "resnet18.toml").write_text('schema = 1\narch = "test_vit"\n')
    with pytest.raises(TaskFileError, match="'resnet18' is the name of another model of timm"):
        read_model(tmp_path / "resnet18.toml")


def test_models_are_named_with_a_size_and_weights(my_model):
    sized = open_model("mixmim-b@96")
    assert sized.name == "mixmim-b@96"
    assert facts.own_size(sized) == (96, 96)
    assert facts.own_size(open_model("mixmim-b")) == (224, 224)
    assert facts.preprocessing(open_model("resnet18@96x128")).size == (96, 128)
    assert open_model(f"{my_model}@96").name == "mine_too@96"
    model, weights = model_and_weights("test_vit=a/b=c.pth")
    assert (model.name, weights) == ("test_vit", "a/b=c.pth")
    assert model_and_weights("test_vit", "random")[1] == "random"
    with pytest.raises(BenchError, match="did you mean test_vit"):
        model_and_weights("test_vot=a.pth")
    with pytest.raises(BenchError, match="must be MODEL=PATH"):
        model_and_weights("test_vit=")


def test_checkpoints_and_sizes_are_rows_of_one_table(run, tmp_path, my_task):
    for seed in (1, 2):
        torch.manual_seed(seed)
        torch.save(timm.create_model("test_vit").state_dict(), tmp_path / f"{seed}.pth")
    models = [f"test_vit={tmp_path / '1.pth'}", f"test_vit={tmp_path / '2.pth'}", "test_vit=random"]
    models.append(f"test_vit@160={tmp_path / '1.pth'}")
    args = [part for model in models for part in ("-m", model)]
    run("run", *args, "-t", my_task, "-p", "knn", "--report", "--results", tmp_path / "r")
    records = RunStore(tmp_path / "r").records()
    assert len({record.run_id for record in records}) == 4
    rows = {(each.model, each.weights.split(" (")[0]) for each in records}
    assert rows == {
        ("test_vit", "1.pth"), ("test_vit", "2.pth"), ("test_vit", "random init"), ("test_vit@160", "1.pth"),
    }  # fmt: skip
    sizes = {each.model: each.identity["preprocessing"]["size"] for each in records}
    assert sizes == {
        "test_vit": [32, 32],
        "test_vit@160": [160, 160],
    }  # the task's, unless a model has its own
    table = (tmp_path / "r" / "leaderboard.csv").read_text().splitlines()
    assert len(table) == 5
    assert not any("preprocessing" in line for line in table)  # a size of its own is not another setting


# -- subsets ----------------------------------------------------------------------------------------


@pytest.fixture
def partial(tmp_path):
    """ImageNet of which a machine has three classes to train, and all of val."""
    copies.imagenet_folders(tmp_path / "imagenet1k")
    for folder in sorted((tmp_path / "imagenet1k" / "train").iterdir())[3:]:
        shutil.rmtree(folder)
    return tmp_path


def split_of_three(task):
    """Two images of each class to train: one is val."""
    return dataclasses.replace(task, split={"train": "train[:3]", "val": "train[3:]", "test": "val"})


def test_a_subset_is_what_is_there(partial):
    roots = DataRoots(base=partial)
    (task,) = select_tasks(["imagenet1k@subset"], ())
    data = open_task(split_of_three(task), roots)
    assert data.classes == copies.synsets()[:3]
    assert data.counts == {"train": 3, "val": 3, "test": 3}
    assert set(data.parts["test"].labels.tolist()) == {0, 1, 2}
    with pytest.raises(BenchError, match="997 classes missing"):
        open_task(split_of_three(load_tasks()["imagenet1k"]), roots)


def test_a_subset_of_listed_classes_is_the_same_in_every_layout(partial, tmp_path):
    names = [copies.synsets()[place] for place in (2, 0)]
    (tmp_path / "two.txt").write_text(f"# ImageNet-2\n{names[0]}  # first\n\n{names[1]}\n")
    (task,) = select_tasks([f"imagenet1k@{tmp_path / 'two.txt'}"], ())
    assert task.name == "imagenet1k@two"
    task = dataclasses.replace(task, split={"train": "train[:2]", "val": "train[2:]", "test": "val"})
    of_folders = open_task(task, DataRoots(base=partial))
    assert of_folders.classes == tuple(sorted(names))
    for name in ("lists", "unpacked", "archives", "shards"):
        getattr(copies, f"imagenet_{name}")(tmp_path / name)
        other = open_task(task, DataRoots(of_task={"imagenet1k": tmp_path / name}))
        assert other.source.fingerprint == of_folders.source.fingerprint, name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n01440764\nn01440765\n", "no class n01440765 in the data"),
        ("n01440764\nn15075141\n", "part 'train' has no images of n15075141"),
        ("n01440764\n", "names 1 classes, and two are needed"),
        ("n01440764\nn01440764\nn01443537\n", "names 'n01440764' twice"),
    ],
)
def test_what_is_wrong_with_a_list_of_classes_is_named(run, partial, text, said):
    (partial / "some.txt").write_text(text)
    task = f"imagenet1k@{partial / 'some.txt'}"
    output = run("run", "-t", task, "-m", "test_vit=random", "--data-root", partial, code=2).output
    assert said in output
    run("run", "-t", "digits@none.txt", "-m", "test_vit=random", code=2)


def test_a_subset_has_results_of_its_own(run, tmp_path):
    write_digits(tmp_path / "images" / "train", per_class=20, classes=5)
    write_digits(tmp_path / "images" / "val", per_class=10, classes=4, start=20)
    task = tmp_path / "mine.toml"
    task.write_text(TASK.replace("num_classes = 3", "num_classes = 10"))
    args = ["-m", "test_vit=random", "-p", "knn", "--results", tmp_path / "r"]
    assert "no class folder" in run("run", "-t", task, *args, code=2).output
    run("run", "-t", f"{task}@subset", *args)
    (record,) = RunStore(tmp_path / "r").records()
    assert record.task == "mine@subset"
    assert record.identity["task"]["num_classes"] == 4  # those in both parts
    assert record.counts["n_test"] == 40
    assert record.provenance["classes"] == [f"digit {k}" for k in range(4)]
    assert "1 of 1 run finished already" in run("run", "-t", f"{task}@subset", *args).output
    assert "whole; 40 images unchanged" in run("cache", "verify").output
    drawn = run("show", f"{task}@subset", "-m", "test_vit", "--results", tmp_path / "r").output
    assert ".png" in drawn


@pytest.mark.parametrize("layout", ["csv", "lists"])
def test_lists_of_which_some_images_are_missing(tmp_path, layout):
    write_digits(tmp_path / "images", per_class=6)
    rows = {}
    for part, places in (("train", range(4)), ("test", range(4, 6))):
        rows[part] = [
            (f"images/digit {k}/{sorted((tmp_path / 'images' / f'digit {k}').iterdir())[p].name}", k)
            for k in range(3)
            for p in places
        ]
    suffix, line = ("csv", "{},{}\n") if layout == "csv" else ("txt", "{} {}\n")
    for part, lines in rows.items():
        text = "".join(line.format(path, label) for path, label in lines)
        (tmp_path / f"{part}.{suffix}").write_text(("path,label\n" if layout == "csv" else "") + text)
    shutil.rmtree(tmp_path / "images" / "digit 1")
    kind = "csvlist:CSVList" if layout == "csv" else "lists:TextLists"
    (tmp_path / "mine.toml").write_text(
        f"""schema = 1\nversion = 1\nkind = "classification"\ntitle = "x"\nnum_classes = 3\nmetrics = ["top1"]
[data]\nroot = "."\nlayouts = ["{kind}"]
[data.options]\nfiles = {{ train = "train.{suffix}", test = "test.{suffix}" }}
[split]\ntrain = "train[:6]"\nval = "train[6:]"\ntest = "test"\n"""
    )
    (whole,) = select_tasks([str(tmp_path / "mine.toml")], ())
    with pytest.raises(BenchError, match="missing image"):
        open_task(whole)
    (task,) = select_tasks([f"{tmp_path / 'mine.toml'}@subset"], ())
    data = open_task(task)
    assert data.classes == ("0", "2")
    assert data.counts == {"train": 6, "val": 2, "test": 4}


def test_a_subset_is_the_same_for_all_protocols(run, tmp_path):
    write_digits(tmp_path / "images" / "train", per_class=20, classes=3)
    write_digits(tmp_path / "images" / "val", per_class=10, classes=4, start=20)
    task = tmp_path / "mine.toml"
    task.write_text(TASK)
    torch.save(timm.create_model("test_vit", num_classes=3).state_dict(), tmp_path / "w.pth")
    for protocols in (("-p", "own-head"), ("-p", "own-head", "-p", "knn")):
        run(
            "run",
            "-t",
            f"{task}@subset",
            "-m",
            f"test_vit={tmp_path / 'w.pth'}",
            *protocols,
            "--results",
            tmp_path / "r",
        )
    records = RunStore(tmp_path / "r").records()
    assert sorted(record.protocol for record in records) == ["knn", "own-head"]
    assert {record.identity["task"]["num_classes"] for record in records} == {3}
    assert sum("outputs are taken to be" in note for r in records for note in r.notes) == 1


def test_classes_of_a_list_in_a_layout_that_is_whole(tmp_path):
    (tmp_path / "some.txt").write_text("1\n7\n")
    (task,) = select_tasks([f"digits@{tmp_path / 'some.txt'}"], ())
    data = open_task(task)
    assert data.classes == ("1", "7")
    whole = open_task(load_tasks()["digits"])
    for role, part in data.parts.items():
        rows = np.isin(whole.parts[role].labels, [1, 7])
        assert part.ids.tolist() == whole.parts[role].ids[rows].tolist()
    (limited,) = select_tasks([f"digits@{tmp_path / 'some.txt'}@limit6"], ())
    assert np.bincount(open_task(limited).parts["test"].labels).tolist() == [3, 3]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "some.txt").write_text("1\n8\n")
    with pytest.raises(BenchError, match="two different tasks are called 'digits@some'"):
        select_tasks([f"digits@{tmp_path / name}" for name in ("some.txt", "other/some.txt")], ())
    (subset,) = select_tasks(["digits@subset"], ())
    with pytest.raises(TaskFileError, match="is whole or missing; for some of its classes, list them"):
        open_task(subset)


# -- smoke runs -------------------------------------------------------------------------------------


def test_a_smoke_run_is_kept_apart_and_removed(run, tmp_path, my_task):
    results = tmp_path / "r"
    args = ["run", "-m", "test_vit=random", "-t", my_task, "-p", "knn", "--report", "--results", results]
    run(*args)
    before = (results / "leaderboard.csv").read_text(), (results / "results.csv").read_text()
    output = run(*args, "--limit", 5).output
    assert "Smoke runs (`--limit`)" in output
    smoke = next(record for record in RunStore(results).records() if record.limited)
    assert smoke.task == "mine@limit5"
    assert {role: smoke.counts[f"n_{role}"] for role in ("train", "val", "test")} == {
        "train": 5, "val": 5, "test": 5,
    }  # fmt: skip
    assert ((results / "leaderboard.csv").read_text(), (results / "results.csv").read_text()) == before
    assert "mine@limit5" in (results / "limited.md").read_text()
    assert (
        "1 run would be removed"
        in run("results", "prune", "--limited", "--dry-run", "--results", results).output
    )
    assert len(RunStore(results).records()) == 2
    run("results", "prune", "--limited", "--results", results)
    assert [record.task for record in RunStore(results).records()] == ["mine"]
    assert not (results / "limited.md").exists()


def test_a_limit_that_leaves_one_class_is_named(run, my_task):
    said = run("run", "-m", "test_vit=random", "-t", my_task, "-p", "linear", "--limit", 1, code=2).output
    assert "--limit 1 leaves one class to train on" in said


def test_a_limit_above_the_number_of_images_takes_all(my_task):
    (task,) = select_tasks([str(my_task)], (), limit=1000)
    assert open_task(task).counts == {"train": 48, "val": 12, "test": 30}


# -- suite files ------------------------------------------------------------------------------------


def test_options_make_a_suite_file_and_back(run, tmp_path, my_task, my_model):
    args = [
        "-m", my_model, "-m", "test_vit=random", "-t", f"{my_task}@5shot", "-p", "linear", "-p", "knn",
        "--seed", 1, "--seed", 2, "--set", "linear.steps=7", "--set", "knn.k=[3, 5]", "--limit", 9,
        "--threads", 2, "--workers", 0,
    ]  # fmt: skip
    text = run("run", *args, "--print-suite").output
    assert tomllib.loads(text) == {
        "schema": 1,
        "models": [str(my_model), "test_vit=random"],
        "weights": "auto",
        "tasks": [f"{my_task}@5shot"],
        "protocols": ["linear", "knn"],
        "preset": "auto",
        "seeds": [1, 2],
        "precision": "float32",
        "limit": 9,
        "set": {"linear": {"steps": 7}, "knn": {"k": [3, 5]}},
        "machine": {"threads": 2, "workers": 0},
    }
    (tmp_path / "suite.toml").write_text(text)
    assert run("run", tmp_path / "suite.toml", "--print-suite").output == text
    plans = [
        [json.loads(line)["run_id"] for line in run("run", *each, "--dry-run", "--json").stdout.splitlines()]
        for each in (args, [tmp_path / "suite.toml"])
    ]
    assert plans[0] == plans[1]
    assert len(plans[0]) == 6  # two seeds of the random network, one of the other


def test_every_option_of_a_suite_stands_in_its_file():
    """But for what is asked of one start alone, and trust in code, which no file can give."""
    once = {"suite_file", "shard", "dry_run", "print_suite", "as_json", "trust_task_code", SET}
    options = {parameter.name for parameter in main.commands["run"].params} - once
    assert options == {*RESULTS, *MACHINE.values()}


def test_controls_and_a_cluster_are_kept_in_a_suite_file(run, tmp_path):
    options = (
        "-m",
        "pixels",
        "-t",
        "digits",
        "-p",
        "knn",
        "--controls",
        "--ray",
        "auto",
        "--gpus-per-run",
        "0.5",
    )
    said = run("run", *options, "--print-suite").output
    assert "controls = true" in said and 'ray = "auto"' in said and "gpus_per_run = 0.5" in said
    path = tmp_path / "suite.toml"
    path.write_text(said)
    assert run("run", path, "--print-suite").output == said


def test_paths_in_a_suite_file_are_relative_to_it(run, tmp_path, my_task, my_model, monkeypatch):
    (tmp_path / "suite.toml").write_text(
        f"""schema = 1
models = ["{my_model.name}", "test_vit=weights.pth", "test_vit"]
weights = "weights.pth"
tasks = ["{my_task.name}"]
protocols = ["knn"]
[machine]
data_root = ["images", "mine=images"]
results = "here"
"""
    )
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pth")
    (tmp_path / "mine_too.toml").write_text('schema = 1\narch = "test_vit"\nimage_size = 160\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run("run", "../suite.toml")
    records = RunStore(tmp_path / "here").records()
    assert {record.model for record in records} == {"mine_too", "test_vit"}  # two of one network are one run
    assert not list(elsewhere.iterdir())
    output = run("run", "../suite.toml", "-m", "test_vit", "--results", "mine", "--dry-run").output
    assert "mine_too" not in output  # options replace the file's values


def test_the_path_of_a_task_file_may_contain_an_at_sign(run, tmp_path, my_task):
    folder = tmp_path / "data@home"
    shutil.copytree(tmp_path / "images", folder / "images")
    path = shutil.copy(my_task, folder / "mine.toml")
    (task,) = select_tasks([f"{path}@limit20"], ())
    assert (task.name, task.path) == ("mine@limit20", str(path))
    (folder / "suite.toml").write_text('schema = 1\nmodels = ["test_vit"]\ntasks = ["mine.toml@limit20"]\n')
    said = run("run", folder / "suite.toml", "-p", "knn", "--weights", "random", "--dry-run")
    assert "mine@limit20" in said.output


def test_options_replace_values_of_a_suite_file_one_by_one(run, tmp_path):
    path = tmp_path / "lr=0.1" / "s.toml"
    path.parent.mkdir()
    (path.parent / "m.toml").write_text('schema = 1\narch = "test_vit"\nweights = "random"\n')
    path.write_text(
        'schema = 1\nmodels = ["m.toml"]\nsuites = ["embedded"]\nprotocols = ["linear", "knn"]\n'
        "[set.linear]\nsteps = 9\npatience = 3\n[set.knn]\nk = [5]\n"
    )
    read = tomllib.loads(run("run", path, "--set", "linear.steps=3", "--print-suite").output)
    assert read["set"] == {"linear": {"steps": 3, "patience": 3}, "knn": {"k": [5]}}
    assert read["models"] == [str(path.parent / "m.toml")]
    read = tomllib.loads(run("run", path, "-p", "knn", "-t", "digits", "--print-suite").output)
    assert read["set"] == {"knn": {"k": [5]}}
    assert (read["tasks"], read.get("suites")) == (["digits"], None)
    assert "knn" in run("run", path, "-p", "knn", "-t", "digits", "--dry-run").output
    assert open_model(f"{path.parent / 'm.toml'}@64").name == "m@64"
    assert model_and_weights(f"{path.parent / 'm.toml'}@64")[0].name == "m@64"


def test_any_value_of_a_recipe_is_written_as_toml(run):
    text = run(
        "run", "--set", "linear.a=inf", "--set", "linear.b=😀", "--set", "linear.c=[1.5, -2]", "--print-suite"
    ).output
    assert tomllib.loads(text)["set"]["linear"] == {"a": float("inf"), "b": "😀", "c": [1.5, -2]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("schema = 2", "schema: is 2"),
        ('model = ["mixmim-b"]', "model: unknown key; did you mean models"),
        ('models = "mixmim-b"', "models: must be a list, each a string, not 'mixmim-b'"),
        ("seeds = [0, -1]", "seeds: "),
        ('seeds = ["0"]', "seeds: must be a list, each an integer"),
        ('precision = "float8"', "precision: 'float8' is not one of"),
        ("limit = true", "limit: must be an integer, not True"),
        ("[machine]\nthreads = 0", "machine.threads: 0 is not in the range"),
        ("[machine]\nbatch = 3", "machine.batch: unknown key; did you mean batch_size"),
        ("[set.linear]\nsteps = 2026-01-01", "set.linear.steps: must be a number"),
        ("[set]\nlinear = 3", "set.linear: must be a table"),
        ('kind = "classification"', "kind: unknown key"),
    ],
)
def test_what_is_wrong_with_a_suite_file_is_named(run, tmp_path, line, said):
    path = tmp_path / "suite.toml"
    path.write_text(line + "\n" if line.startswith("schema") else f"schema = 1\n{line}\n")
    assert f"{path}: {said}" in run("run", path, code=2).output
    assert "no such file" in run("run", tmp_path / "none.toml", code=2).output


# -- records ----------------------------------------------------------------------------------------


def test_each_finished_run_is_a_line_of_json(tmp_path, my_task):
    args = ["run", "-m", "test_vit=random", "-t", my_task, "-p", "knn", "-p", "linear", "--json"]
    args += ["--results", tmp_path / "r", "--set", "linear.steps=5"]
    first = CliRunner().invoke(main, [str(arg) for arg in args])
    lines = [json.loads(line) for line in first.stdout.splitlines()]
    assert [(each["new"], each["identity"]["protocol"]["name"]) for each in lines] == [
        (True, "knn"), (True, "linear"),
    ]  # fmt: skip
    assert "top1" in lines[0]["scores"]
    assert (lines[0]["task"], lines[0]["protocol"], lines[0]["seed"]) == ("mine", "knn", 0)
    assert "Written:" in first.stderr
    again = CliRunner().invoke(main, [str(arg) for arg in args])
    assert [json.loads(line)["new"] for line in again.stdout.splitlines()] == [False, False]


def test_results_are_listed_shown_and_removed(run, tmp_path, my_task):
    at = ("--results", tmp_path / "r")
    run("run", "-m", "test_vit=random", "-t", my_task, "-p", "knn", "-p", "linear", *at)
    knn = next(record for record in RunStore(tmp_path / "r").records() if record.protocol == "knn")
    listed = run("results", "ls", "-p", "knn", "-m", "test_*", *at).output
    assert knn.run_id[:8] in listed
    assert "linear" not in listed
    assert "nothing" in run("results", "ls", "--failed", *at).output
    assert json.loads(run("results", "ls", "-p", "knn", "--json", *at).output)[0]["run_id"] == knn.run_id
    shown = run("results", "show", knn.run_id[:6], *at).output
    assert f"top1        {100 * knn.scores['top1']['value']:.1f}" in shown
    assert "temperature = 0.07" in shown
    assert str(tmp_path / "r" / "runs" / f"{knn.run_id}.npz") in shown
    assert json.loads(run("results", "show", knn.run_id, "--json", *at).output)["model"] == "test_vit"
    assert "no single run 'x'" in run("results", "show", "x", *at, code=2).output
    assert "2 runs begin with it" in run("results", "rm", "", *at, code=2).output
    with RunStore(tmp_path / "r").claim(knn.run_id):  # as by a process that does it
        assert "kept, since it is running" in run("results", "rm", knn.run_id, *at, code=1).output
    assert "1 run removed" in run("results", "rm", knn.run_id[:6], knn.run_id, *at).output
    assert [record.protocol for record in RunStore(tmp_path / "r").records()] == ["linear"]
    assert not list((tmp_path / "r").rglob(f"{knn.run_id}*.npz"))
    assert "knn" not in (tmp_path / "r" / "leaderboard.md").read_text()
    assert "say what to remove" in run("results", "prune", *at, code=2).output


def test_values_are_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("results/runs").mkdir(parents=True)
    Path("results/runs/0123456789abcdef.json").write_text("{}")

    def completed(words, typed):
        from click.shell_completion import ShellComplete

        complete = ShellComplete(main, {}, "mixmim-bench", "_MIXMIM_BENCH_COMPLETE")
        return {item.value for item in complete.get_completions(words.split(), typed)}

    assert "mixmim-b" in completed("run -m", "mix")
    assert "digits" in completed("run --task", "dig")
    assert completed("run -s", "embedded") == {"embedded", "embedded-dense"}
    assert completed("run -p", "own") == {"own-head"}
    assert completed("results ls -p", "kn") == {"knn"}
    assert completed("results show", "01") == {"0123456789abcdef"}


def test_every_command_has_examples(run):
    def commands(group, words=()):
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from commands(command, (*words, name))
            else:
                yield (*words, name)

    without = [words for words in commands(main) if "Examples:" not in run(*words, "--help").output]
    assert not without


def test_limited_rows_are_stratified(my_task):
    (task,) = select_tasks([f"{my_task}@limit6"], ())
    assert np.bincount(open_task(task).parts["test"].labels).tolist() == [2, 2, 2]
