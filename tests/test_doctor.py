"""Where data is looked for, which part of it a variant takes, and what doctor says of it."""

import dataclasses
import json
import socket

import copies
import numpy as np
import pytest
from conftest import TASK
from PIL import Image

from mixmim_bench.data.dataset import open_task
from mixmim_bench.data.roots import find_roots, parse_roots
from mixmim_bench.errors import BenchError, TaskFileError
from mixmim_bench.specs import ROLES, ModelSpec
from mixmim_bench.suite.selection import load_tasks, select_tasks
from mixmim_bench.weights.find import here

DIGITS = load_tasks()["digits"]


# -- roots ---------------------------------------------------------------------------------------------


def test_options_come_before_the_environment_and_that_before_the_config(monkeypatch, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text('data_root = "/of/config"\n[roots]\ndigits = "/of/config/d"\nmnist = "/of/config/m"\n')
    monkeypatch.setenv("MIXMIM_BENCH_CONFIG", str(config))
    assert find_roots().folder(DIGITS) == find_roots().of_task["digits"]
    assert str(find_roots().base) == "/of/config"
    monkeypatch.setenv("MIXMIM_BENCH_DATA", "/of/environment:digits=/of/environment/d")
    assert str(find_roots().base) == "/of/environment"
    assert {name: str(path) for name, path in find_roots().of_task.items()} == {
        "digits": "/of/environment/d",
        "mnist": "/of/config/m",
    }
    assert str(find_roots(["/of/option", "digits=/of/option/d"]).folder(DIGITS)) == "/of/option/d"
    assert str(find_roots(["/of/option"]).base) == "/of/option"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('data_rot = "/a"', "data_rot: unknown key; did you mean data_root"),
        ('data_root = "a"', "data_root: must be an absolute path"),
        ("[roots]\ndigits = 3", "roots.digits: must be a string"),
        ("data_root = ", "config.toml"),
    ],
)
def test_a_wrong_config_file_is_named(monkeypatch, tmp_path, content, told):
    (tmp_path / "config.toml").write_text(content)
    monkeypatch.setenv("MIXMIM_BENCH_CONFIG", str(tmp_path / "config.toml"))
    with pytest.raises(TaskFileError, match=told):
        find_roots()


def test_a_config_file_that_is_not_there_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("MIXMIM_BENCH_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(TaskFileError, match="no such file"):
        find_roots()


def test_two_roots_for_everything_are_refused():
    with pytest.raises(BenchError, match="two data roots, /a and /b"):
        parse_roots(["/a", "/b"])


# -- variants ------------------------------------------------------------------------------------------


def test_variants_take_fewer_training_images_and_the_same_test_images():
    whole, few, vtab = (
        open_task(t).parts for t in select_tasks(["digits", "digits@5shot", "digits@train800val100"], [])
    )
    assert {role: len(part) for role, part in few.items()} == {"train": 50, "val": 50, "test": 500}
    assert {role: len(part) for role, part in vtab.items()} == {"train": 800, "val": 100, "test": 500}
    assert set(np.bincount(few["train"].labels)) == {5}
    for parts in (few, vtab):
        assert parts["test"].ids.tolist() == whole["test"].ids.tolist()
        for role in ROLES:
            assert set(parts[role].ids.tolist()) <= set(whole[role].ids.tolist())
    assert set(np.bincount(vtab["train"].labels)) <= set(range(76, 85))


def test_a_variant_is_a_task_of_its_own(my_task):
    tasks = select_tasks(["digits@5shot", "digits", f"{my_task}@1shot"], [])
    assert [task.name for task in tasks] == ["digits@5shot", "digits", "mine@1shot"]
    assert [len(open_task(task).parts["train"]) for task in tasks] == [50, 1000, 3]


@pytest.mark.parametrize("variant", ["fewshot", "0shot", "train0val1", "5shots"])
def test_an_unknown_variant_brings_the_nearest(variant):
    with pytest.raises(BenchError, match=f"digits: no variant '{variant}'"):
        select_tasks([f"digits@{variant}"], [])


def test_more_images_than_there_are_is_an_error():
    (task,) = select_tasks(["digits@train5000val200"], [])
    with pytest.raises(TaskFileError, match=r"split\.train: a cut needs image 5000, but only 1000 are left"):
        open_task(task)


# -- doctor ----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("doctor called out")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("MIXMIM_BENCH_OFFLINE")


def diagnosed(run, *args, code=0):
    return json.loads(run("doctor", "-m", "test_vit", "--json", *args, code=code).stdout)


def test_doctor_looks_at_every_task_and_fetches_nothing(run):
    found = diagnosed(run)
    by_name = {task["task"]: task for task in found["tasks"]}
    assert set(by_name) == set(load_tasks())
    assert by_name["digits"]["state"] == "ok" and by_name["imagenet1k"]["state"] == "missing"
    for task in by_name.values():
        assert task["state"] == "ok" or task["download"], "it does not say what to fetch"
    assert found["machine"]["cores"] >= 1 and found["machine"]["matmul_gmacs_per_s"] > 0
    assert found["machine"]["versions"]["torch"]
    assert by_name["imagenet1k"]["features_gb"] == pytest.approx((1281167 + 50000) * 64 * 4 / 1e9)


def test_a_task_that_was_named_and_is_missing_has_a_status_of_its_own(run):
    assert diagnosed(run, "-t", "digits")["tasks"][0]["duplicates"] == {
        "val_in_train": 0,
        "test_in_train_or_val": 0,
    }
    diagnosed(run, "-t", "digits", "-t", "cifar10", code=3)
    diagnosed(run, "-s", "paper", code=3)
    assert "did you mean digits" in run("doctor", "-t", "digit", code=2).output


def test_doctor_names_what_is_wrong(run, my_task, tmp_path):
    images = tmp_path / "images"
    train = sorted((images / "train" / "digit 1").iterdir())
    train[0].write_bytes(b"")
    train[1].write_text("this is a text")
    (images / "val" / "digit 2" / "copy.png").write_bytes(train[5].read_bytes())
    my_task.write_text(my_task.read_text().replace("[data]", "[data]\ncounts = { train = 61, val = 31 }"))
    (found,) = diagnosed(run, "-t", my_task, code=1)["tasks"]
    assert found["state"] == "wrong"
    assert found["images"] == {"train": 60, "val": 31} and found["official"] == {"train": 61, "val": 31}
    assert found["problems"][0] == "data.counts.train: is 61, but the data has 60"
    assert found["empty_files"] == 1 and len(found["unreadable"]) == 2
    assert any(str(train[1]) in text for text in found["unreadable"])
    assert found["duplicates"]["test_in_train_or_val"] == 1
    assert found["train_images_a_class"] == {"min": 16, "median": 16.0, "max": 16}
    table = run("doctor", "-m", "test_vit", "-t", my_task, code=1).output
    assert "2 of 91" in table and "61" in table


def test_doctor_names_empty_files_that_no_sample_holds(run, tmp_path):
    """Among more images than are sampled; their sizes are in the listing."""
    folder = tmp_path / "many" / "images"
    for part, count in (("train", 300), ("val", 10)):
        for label in ("a", "b"):
            (folder / part / label).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (4, 4), i % 256).save(folder / part / label / f"{i:04d}.png")
    (folder / "train" / "a" / "0123.png").write_bytes(b"")
    (folder / "train" / "b" / "0211.png").unlink()
    (folder / "train" / "b" / "0211.png").symlink_to(tmp_path / "nowhere.png")
    task = tmp_path / "many" / "many.toml"
    task.write_text(TASK.replace("num_classes = 3", "num_classes = 2"))
    (found,) = diagnosed(run, "-t", task, code=1)["tasks"]
    (problem,) = [text for text in found["problems"] if "dangling link" in text]
    assert "2 empty files or dangling links" in problem
    assert "0123.png" in problem and "0211.png" in problem and found["empty_files"] == 2


@pytest.mark.parametrize("full", [False, True])
def test_only_the_full_examination_decodes_everything(run, tmp_path, full):
    for part, count in (("train", 300), ("val", 220)):
        for place in range(count):
            pixels = np.random.default_rng((len(part), place)).integers(0, 256, (4, 4), dtype=np.uint8)
            path = tmp_path / "images" / part / str(place % 2) / f"{place:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (tmp_path / "many.toml").write_text(
        'schema = 1\nversion = 1\nkind = "classification"\ntitle = "Many"\nnum_classes = 2\n'
        'metrics = ["top1"]\n'
        '[data]\nlayouts = ["folder:ImageFolder"]\nroot = "images"\n'
        '[split]\ntrain = "train[:99%]"\nval = "train[99%:]"\ntest = "val"\n'
    )
    args = ["-t", tmp_path / "many.toml", *(["--full"] if full else [])]
    assert diagnosed(run, *args)["tasks"][0]["decoded"] == (520 if full else 200 + 3 + 200)


def test_a_class_without_training_images_is_named(run, tmp_path):
    copies.write(tmp_path / "meta" / "val.txt", "a.jpg 0\nb.jpg 1\nc.jpg 2\n")
    copies.write(tmp_path / "meta" / "train.txt", "d.jpg 0\ne.jpg 0\nf.jpg 2\ng.jpg 2\n")
    for name in "abcdefg":
        copies.write(tmp_path / f"{name}.jpg", copies.jpegs()[ord(name)])
    (tmp_path / "listed.toml").write_text(
        'schema = 1\nversion = 1\nkind = "classification"\ntitle = "Listed"\nnum_classes = 3\n'
        'metrics = ["top1"]\n[data]\nroot = "."\n[[data.layouts]]\nlayout = "lists:TextLists"\n'
        'files = { train = "meta/train.txt", val = "meta/val.txt" }\n'
        '[split]\ntrain = "train[:50%]"\nval = "train[50%:]"\ntest = "val"\n'
    )
    (found,) = diagnosed(run, "-t", tmp_path / "listed.toml", code=1)["tasks"]
    assert found["problems"] == ["no image of 1 is in train"]


def test_a_model_file_names_its_checkpoint(tmp_path):
    (tmp_path / "mine.pth").write_bytes(b"")
    model = ModelSpec(name="mine", arch="test_vit", checkpoint=str(tmp_path / "mine.pth"))
    assert here(model) == "mine.pth"
    assert here(dataclasses.replace(model, checkpoint=str(tmp_path / "gone.pth"))) == ""
    assert here(dataclasses.replace(model, checkpoint="random")) == ""
