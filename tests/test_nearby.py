"""Data that is nearly where it should be: what is accepted, and what an error says of the rest."""

import pytest
from conftest import TASK, write_digits

from mixmim_bench.data.dataset import find_data, open_task
from mixmim_bench.data.roots import parse_roots
from mixmim_bench.errors import MissingData
from mixmim_bench.suite.selection import load_tasks
from mixmim_bench.suite.taskfile import read_task

IMAGENET = load_tasks()["imagenet1k"]


def told(task, root):
    with pytest.raises(MissingData) as caught:
        find_data(task, parse_roots([str(root)]))
    return str(caught.value)


def class_folders(root, *parts):
    for part in parts:
        (root / part / "n01440764").mkdir(parents=True)


def test_a_data_root_that_does_not_exist_is_named_and_nothing_else():
    assert told(IMAGENET, "/nonexistent") == "imagenet1k: not found: folder /nonexistent"


@pytest.mark.parametrize("name", ["imagenet", "ImageNet", "ILSVRC2012", "ImageNet-1k"])
def test_a_folder_of_another_name_is_found(tmp_path, name):
    class_folders(tmp_path / name, "train", "val")
    (tmp_path / "cifar10" / "train" / "x").mkdir(parents=True)
    (tmp_path / "cifar10" / "val" / "x").mkdir(parents=True)
    said = told(IMAGENET, tmp_path)
    assert f"folder {tmp_path}/imagenet1k" in said
    assert said.endswith(f"it may be in {tmp_path}/{name}: --data-root imagenet1k={tmp_path}/{name}")
    found = find_data(IMAGENET, parse_roots([f"imagenet1k={tmp_path}/{name}"]))
    assert found.name == "folder:ImageFolder"


def test_the_folder_of_the_set_itself_as_root_is_told(tmp_path):
    class_folders(tmp_path, "train", "val")
    assert f"--data-root imagenet1k={tmp_path}" in told(IMAGENET, tmp_path)
    places = load_tasks()["places365"]
    root = tmp_path / "places365_standard"
    class_folders(root, "train", "val")
    assert "--data-root places365=" in told(places, root)


def test_a_set_that_lies_deeper_is_found(tmp_path):
    class_folders(tmp_path / "imagenet1k" / "ILSVRC2012" / "images", "train", "val")
    folder = tmp_path / "imagenet1k" / "ILSVRC2012" / "images"
    assert f"it may be in {folder}: --data-root imagenet1k={folder}" in told(IMAGENET, tmp_path)


def test_a_part_of_another_name_is_told(tmp_path):
    class_folders(tmp_path / "imagenet1k", "train", "validation")
    assert "validation/ should be named val/" in told(IMAGENET, tmp_path)


def test_what_is_there_is_told(tmp_path):
    (tmp_path / "imagenet1k").mkdir()
    assert f"{tmp_path}/imagenet1k is empty" in told(IMAGENET, tmp_path)
    (tmp_path / "imagenet1k" / "train_mini.json").write_text("{}")
    assert "imagenet1k contains train_mini.json" in told(IMAGENET, tmp_path)


def test_the_folder_of_a_file_system_is_no_class(tmp_path):
    write_digits(tmp_path / "images" / "train", per_class=20)
    write_digits(tmp_path / "images" / "val", per_class=10, start=20)
    (tmp_path / "images" / "train" / "lost+found").mkdir()
    (tmp_path / "mine.toml").write_text(TASK)
    assert len(open_task(read_task(tmp_path / "mine.toml")).classes) == 3


def test_annotations_in_a_folder_of_their_own_are_found(tmp_path):
    task = load_tasks()["inat2019"]
    root = tmp_path / "inat2019"
    (root / "annotations").mkdir(parents=True)
    for name in ("train2019.json", "val2019.json"):
        (root / "annotations" / name).write_text("{}")
    assert find_data(task, parse_roots([str(tmp_path)])).name == "inat:Competition"


def test_hints_on_downloads_name_the_folder(run, tmp_path):
    said = run("doctor", "-t", "imagenet1k", "--data-root", tmp_path, code=3).output
    assert "DATA_ROOT" not in said and f"{tmp_path}/imagenet1k/" in said


def test_other_peoples_images_are_not_taken_for_the_set(tmp_path):
    class_folders(tmp_path / "my_pets", "train", "val")
    class_folders(tmp_path / "ILSVRC2012", "train", "val")
    assert "my_pets" not in told(IMAGENET, tmp_path)
    assert "ILSVRC2012" not in told(load_tasks()["inat2019"], tmp_path)


def test_hints_on_downloads_name_a_folder_of_the_tasks_own(run, tmp_path):
    said = run("doctor", "-t", "imagenet1k", "--data-root", f"imagenet1k={tmp_path}/ILSVRC", code=3).output
    assert f"put the three into {tmp_path}/ILSVRC/," in said
