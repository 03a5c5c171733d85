"""Real datasets on their real layouts: small copies, read whole, and all that can be wrong with them."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import copies
import numpy as np
import pytest

from mixmim_bench.data.dataset import open_task
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import MissingData, TaskFileError
from mixmim_bench.specs import ROLES
from mixmim_bench.suite.selection import load_tasks

TASKS = load_tasks()


def opened(name, root, **changes):
    """Open a task of the suite on a small copy in `root`."""
    task = dataclasses.replace(TASKS[name], **{"counts": {}, **changes})
    return open_task(task, DataRoots(of_task={name: root}))


def told(name, root, **changes):
    """Return the error that a wrong copy brings."""
    with pytest.raises((TaskFileError, MissingData)) as caught:
        opened(name, root, **changes)
    return str(caught.value)


IMAGENET = {
    "folders": copies.imagenet_folders,
    "lists": copies.imagenet_lists,
    "unpacked": copies.imagenet_unpacked,
    "kaggle": copies.imagenet_kaggle,
    "archives": copies.imagenet_archives,
    "shards": copies.imagenet_shards,
    "parquet": copies.imagenet_parquet,
}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Every copy of the same images, by name."""
    folder = tmp_path_factory.mktemp("imagenet")
    for name, make in IMAGENET.items():
        make(folder / name)
    return folder


@pytest.mark.parametrize("layout", IMAGENET)
def test_imagenet_is_the_same_however_it_is_held(imagenet, layout):
    data = opened("imagenet1k", imagenet / layout)
    assert {role: len(part) for role, part in data.parts.items()} == {"train": 1980, "val": 20, "test": 1000}
    assert data.classes == copies.synsets()
    expected = {
        stem: (synset, content) for images in copies.imagenet().values() for synset, stem, content in images
    }
    for part in data.parts.values():
        for row in range(0, len(part), 7):
            synset, content = expected[str(part.ids[row])]
            assert copies.synsets()[part.labels[row]] == synset
            assert part.images.digest(row) == copies_digest(content)
        assert part.images.load(0).mode == "RGB"
        again = pickle.loads(pickle.dumps(part.images))
        assert again.digest(3) == part.images.digest(3)
        assert again.name(3) == part.images.name(3)
    reference = opened("imagenet1k", imagenet / "folders")
    for role in ROLES:
        assert data.parts[role].ids.tolist() == reference.parts[role].ids.tolist()
    if layout != "parquet":  # which does not tell an image's size unread
        assert data.source.fingerprint == reference.source.fingerprint


def copies_digest(content):
    import hashlib

    return hashlib.sha256(content).digest()[:16]


@pytest.mark.parametrize("make", [copies.imagenet_shards, copies.imagenet_parquet])
def test_another_order_of_classes_is_mapped_to_the_standard_one(tmp_path, make):
    order = np.random.default_rng(5).permutation(1000).tolist()
    make(tmp_path, order)
    for part in opened("imagenet1k", tmp_path).parts.values():
        named = {stem: synset for images in copies.imagenet().values() for synset, stem, _ in images}
        assert [copies.synsets()[label] for label in part.labels] == [named[str(i)] for i in part.ids]


def test_labels_that_contradict_the_names_are_an_error(tmp_path):
    copies.imagenet_shards(tmp_path, [0] * 1000)
    assert "the label 0 is" in told("imagenet1k", tmp_path)


def cut(path, share=0.5):
    """Leave the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("layout", "change", "said"),
    [
        ("folders", lambda r: shutil.rmtree(r / "val" / "n01440764"), "1 class missing: n01440764"),
        (
            "folders",
            lambda r: (r / "train" / "n01440764").rename(r / "train" / "fish"),
            "fish is not a class",
        ),
        (
            "lists",
            lambda r: (r / "val" / "ILSVRC2012_val_00000007.JPEG").unlink(),
            "lists 1 missing image",
        ),
        (
            "lists",
            lambda r: (r / "meta" / "val.txt").write_text("a.JPEG 1000\n"),
            "missing image",
        ),
        (
            "lists",
            lambda r: (r / "meta" / "val.txt").write_text("a.JPEG\n"),
            "val.txt:1: expected a line such as 'folder/image.jpg 0', got 'a.JPEG'",
        ),
        ("lists", lambda r: (r / "meta" / "val.txt").write_bytes(b"\xff\xfe 1\n"), "is not UTF-8"),
        ("lists", lambda r: (r / "meta" / "val.txt").write_text("\n"), "lists no image"),
        (
            "unpacked",
            lambda r: shutil.rmtree(r / "ILSVRC2012_devkit_t12"),
            "ILSVRC2012_devkit_t12(.tar.gz) or",
        ),
        (
            "unpacked",
            lambda r: cut(r / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt"),
            "has no label for",
        ),
        (
            "unpacked",
            lambda r: cut(r / "ILSVRC2012_devkit_t12" / "data" / "meta.mat"),
            "meta.mat cannot be read",
        ),
        ("archives", lambda r: cut(r / "ILSVRC2012_img_train.tar"), "it is truncated or not an archive"),
        ("archives", lambda r: cut(r / "ILSVRC2012_img_val.tar", 0.98), "it is truncated or not an archive"),
        ("archives", lambda r: cut(r / "ILSVRC2012_devkit_t12.tar.gz"), "download it again"),
        ("archives", lambda r: (r / "ILSVRC2012_img_val.tar").unlink(), "archives"),
        ("shards", lambda r: cut(r / "imagenet1k-train-0002.tar"), "imagenet1k-train-0002.tar: "),
        ("shards", lambda r: cut(r / "imagenet1k-train-0002.tar", 0.9), "it is truncated or not an archive"),
        (
            "shards",
            lambda r: copies.tar(r / "imagenet1k-train-0009.tar", {"a.jpg": b"1"}),
            "a has no .cls, only jpg",
        ),
        (
            "shards",
            lambda r: copies.tar(r / "imagenet1k-train-0009.tar", {"a.cls": b"1"}),
            "the sample a has 0 images instead of one",
        ),
        (
            "shards",
            lambda r: copies.tar(r / "imagenet1k-train-0009.tar", {"a.jpg": b"1", "a.cls": b"fish"}),
            "the label of a cannot be read",
        ),
        (
            "shards",
            lambda r: copies.tar(r / "imagenet1k-train-0009.tar", {"a.jpg": b"1", "a.cls": b"1"}),
            "no image id in ",
        ),
        ("parquet", lambda r: cut(r / "data" / "train-00001-of-00002.parquet"), "cannot be read as parquet"),
        (
            "parquet",
            lambda r: copies.parquet(r / "data" / "train-1.parquet", [b"a"], [1], image="img"),
            "has no column 'image' with images (columns: img: binary, label: int64)",
        ),
        (
            "parquet",
            lambda r: copies.parquet(r / "data" / "train-1.parquet", [b"a"], [1.5]),
            "has no column 'label' with labels (columns: image: binary, label: double)",
        ),
        (
            "parquet",
            lambda r: copies.parquet(r / "data" / "train-1.parquet", [b"a"], [None, 1][:1]),
            "has no column 'label'",
        ),
    ],
)
def test_what_is_wrong_with_a_copy_is_named(imagenet, tmp_path, layout, change, said):
    shutil.copytree(imagenet / layout, tmp_path / "copy", symlinks=True)
    change(tmp_path / "copy")
    assert said in told("imagenet1k", tmp_path / "copy")


def test_a_label_that_no_class_has_is_named(imagenet, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(imagenet / "lists", root)
    text = (root / "meta" / "val.txt").read_text()
    (root / "meta" / "val.txt").write_text(text.replace(" 999\n", " 1000\n"))
    assert "the label 1000 of " in told("imagenet1k", root)
    assert "is not one of the 1000 classes (0 to 999)" in told("imagenet1k", root)


def test_a_label_below_zero_is_named(tmp_path):
    """Hugging Face gives the images of its test part the label -1."""
    copies.imagenet_parquet(tmp_path, [*range(999), -1])
    assert "the label -1 of " in told(
        "imagenet1k", tmp_path, layouts=unnamed("imagenet1k", "parquet:Parquet")
    )


def unnamed(task, layout):
    """Return a layout of a task for images whose names say nothing of their class."""
    spec = next(spec for spec in TASKS[task].layouts if spec.name == layout)
    return (dataclasses.replace(spec, options={**spec.options, "class_pattern": ""}),)


def test_another_count_than_the_official_one_is_reported(imagenet):
    with pytest.raises(TaskFileError, match=r"data\.counts\.train: is 1281167, but the data has 2000"):
        opened("imagenet1k", imagenet / "archives", counts=TASKS["imagenet1k"].counts)


@pytest.mark.parametrize("form", ["FOLDER/imagenet1k-PART-*.tar", "imagenet1k-PART-{0000..0003}.tar"])
def test_shards_are_named_as_users_of_webdataset_do(imagenet, form):
    (spec,) = (spec for spec in TASKS["imagenet1k"].layouts if spec.name == "shards:Shards")
    names = {part: form.replace("PART", name) for part, name in (("train", "train"), ("val", "validation"))}
    shards = {part: name.replace("FOLDER", str(imagenet / "shards")) for part, name in names.items()}

    def of(shards):
        return (dataclasses.replace(spec, options={**spec.options, "shards": shards}),)

    assert len(opened("imagenet1k", imagenet / "shards", layouts=of(shards)).parts["test"]) == 1000
    said = told("imagenet1k", imagenet / "shards", layouts=of({**shards, "val": 3}))
    assert "must be a pattern such as 'train-*.tar', or a list of them, not 3" in said


def test_a_shard_that_changes_is_listed_anew(tmp_path):
    copies.imagenet_shards(tmp_path)
    before = opened("imagenet1k", tmp_path)
    copies.tar(
        tmp_path / "imagenet1k-train-0004.tar",
        {"n01440764_9999.jpg": copies.jpegs()[0], "n01440764_9999.cls": b"0"},
    )
    after = opened("imagenet1k", tmp_path)
    assert sum(map(len, after.parts.values())) == sum(map(len, before.parts.values())) + 1
    assert after.source.fingerprint != before.source.fingerprint


def test_a_packed_shard_says_how_to_mend_it(tmp_path):
    import gzip

    copies.imagenet_shards(tmp_path)
    shard = tmp_path / "imagenet1k-train-0000.tar"
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    assert "imagenet1k-train-0000.tar" in told("imagenet1k", tmp_path)


def test_an_image_of_a_shard_that_was_cut_since_is_unreadable(tmp_path):
    from mixmim_bench.data.images import UnreadableImage

    copies.imagenet_shards(tmp_path)
    data = opened("imagenet1k", tmp_path)
    for shard in tmp_path.glob("*.tar"):
        cut(shard, 0.1)
    with pytest.raises(UnreadableImage):
        for row in range(len(data.parts["train"])):
            data.parts["train"].images.load(row)


# -- iNaturalist and scenes ----------------------------------------------------------------------------


@pytest.mark.parametrize("year", copies.INAT)
def test_inaturalist_is_read_from_its_json(tmp_path, year):
    copies.inat(tmp_path, year, 200)
    data = opened(f"inat{year}", tmp_path, num_classes=200)
    assert len(data.parts["train"]) + len(data.parts["val"]) == 200
    assert len(data.parts["test"]) == 20
    for part in data.parts.values():
        for image, label in zip(part.ids, part.labels, strict=True):
            assert copies.INAT[year][2].format(label) == str(image).rpartition("/")[0]
        assert part.images.load(0).mode == "RGB"


def test_inaturalist_is_the_same_in_class_folders_and_lists(tmp_path):
    copies.inat(tmp_path / "official", 2019, 1010, val_step=1)
    official = opened("inat2019", tmp_path / "official")
    for part in ("train", "val"):
        for image in json.loads((tmp_path / "official" / f"{part}2019.json").read_text())["images"]:
            target = tmp_path / "folders" / part / Path(image["file_name"]).parent.name
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tmp_path / "official" / image["file_name"], target)
    assert opened("inat2019", tmp_path / "folders").source.fingerprint == official.source.fingerprint


@pytest.mark.parametrize("prefix", ["train_val2018/", ""])
def test_openmmlabs_lists_of_inaturalist_are_read(tmp_path, prefix):
    copies.inat(tmp_path, 2018, 30)
    expected = opened("inat2018", tmp_path, num_classes=30)
    for part in ("train", "val"):
        content = json.loads((tmp_path / f"{part}2018.json").read_text())
        category = {a["image_id"]: a["category_id"] for a in content["annotations"]}
        names = {i["id"]: i["file_name"].removeprefix("train_val2018/") for i in content["images"]}
        lines = [f"{prefix}{name} {category[image]}\n" for image, name in names.items()]
        copies.write(tmp_path / "meta" / f"{part}.txt", "".join(lines))
        (tmp_path / f"{part}2018.json").unlink()
    layouts = [
        dataclasses.replace(spec, options={**spec.options, "classes": 30})
        for spec in TASKS["inat2018"].layouts
        if spec.name == "lists:TextLists"
    ]
    found = opened("inat2018", tmp_path, num_classes=30, layouts=tuple(layouts))
    assert found.source.fingerprint == expected.source.fingerprint


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: (r / "val2019.json").unlink(), "annotations"),
        (lambda r: cut(r / "train2019.json"), "train2019.json is not JSON or truncated"),
        (lambda r: (r / "train2019.json").write_text('{"images": []}'), "has no list 'annotations'"),
        (lambda r: edit_json(r, lambda c: c["annotations"].pop()), "has no annotation"),
        (
            lambda r: edit_json(r, lambda c: c["annotations"][0].update(category_id=1010)),
            "has the category 1010",
        ),
        (lambda r: edit_json(r, lambda c: c["categories"].pop()), "have different categories"),
        (lambda r: edit_json(r, lambda c: c["images"][0].update(file_name="gone.jpg")), "such as"),
        (lambda r: edit_json(r, lambda c: c["images"][0].pop("file_name")), "file_name"),
    ],
)
def test_what_is_wrong_with_inaturalist_is_named(tmp_path, change, said):
    copies.inat(tmp_path, 2019, 50)
    change(tmp_path)
    assert said in told("inat2019", tmp_path, num_classes=50)


def edit_json(root, change):
    path = root / "train2019.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "folders",
    [
        ("data_large_standard", "val_large"),
        ("data_large", "val_large"),
        ("data_256_standard", "val_256"),
        ("data_256", "val_256"),
    ],
)
def test_places365_is_read_from_its_lists(tmp_path, folders):
    copies.places365(tmp_path, *folders)
    data = opened("places365", tmp_path)
    names = [name[2:].replace("/", "-") for name in copies.scenes(365)]
    assert list(data.classes) == names
    for image, label in zip(data.parts["train"].ids, data.parts["train"].labels, strict=True):
        assert str(image).partition("/")[0] == names[label]
    assert data.parts["test"].ids[0] == "Places365_val_00000001"


def test_places365_in_its_easy_format_is_the_same(tmp_path):
    copies.places365(tmp_path / "lists", "data_256", "val_256")
    expected = opened("places365", tmp_path / "lists")
    names = [name[2:].replace("/", "-") for name in copies.scenes(365)]
    for role, part in (("train", "train"), ("val", "train"), ("test", "val")):
        images = expected.parts[role]
        for row in range(len(images)):
            target = tmp_path / "easy" / "places365_standard" / part / names[images.labels[row]]
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(images.images.name(row), target)
    easy = opened("places365", tmp_path / "easy")
    assert easy.classes == expected.classes
    for role in ("train", "val", "test"):
        assert sorted(easy.parts[role].ids) == sorted(expected.parts[role].ids)
    assert easy.parts["val"].ids.tolist() == expected.parts["val"].ids.tolist()


def test_places205_has_classes_in_an_order_of_its_own(tmp_path):
    classes = tuple(TASKS["places205"].layouts[0].options["classes"])
    assert len(set(classes)) == 205
    assert list(classes) != sorted(classes)
    copies.places205(tmp_path, classes)
    data = opened("places205", tmp_path)
    assert data.classes == classes
    assert all(
        classes[label] == str(image).partition("/")[0]
        for image, label in zip(data.parts["test"].ids, data.parts["test"].labels, strict=True)
    )
    lists = tmp_path / "trainvalsplit_places205" / "val_places205.csv"
    lines = lists.read_text().splitlines()
    lists.write_text("\n".join([lines[0].replace(" 0", " 1"), *lines[1:]]))
    assert "images of abbey have label 1, but abbey is class 0" in told("places205", tmp_path)


def test_sun397_takes_its_labels_from_the_folders(tmp_path):
    copies.sun397(tmp_path)
    data = opened("sun397", tmp_path)
    assert len(data.parts["train"]) + len(data.parts["val"]) == len(data.parts["test"]) == 397


# -- sets of torchvision -------------------------------------------------------------------------------


@pytest.fixture
def any_bytes(monkeypatch):
    """Let torchvision take files that are not the published ones."""
    from torchvision.datasets import cifar, flowers102, stl10, svhn

    for module in (cifar, flowers102, stl10, svhn):
        monkeypatch.setattr(module, "check_integrity", lambda *_: True)


@pytest.mark.parametrize("name", copies.SETS)
@pytest.mark.parametrize("place", ["own folder", "root of torchvision"])
@pytest.mark.usefixtures("any_bytes")
def test_a_set_of_torchvision_is_read(tmp_path, name, place):
    root = tmp_path / name
    made_in = root if place == "own folder" else tmp_path
    made_in.mkdir(exist_ok=True)
    copies.SETS[name](made_in)
    data = opened(name, root)
    for part in data.parts.values():
        assert part.images.load(0).mode == "RGB"
        assert len(part.images.digest(0)) == 16
    again = pickle.loads(pickle.dumps(data.parts["test"].images))
    assert again.digest(0) == data.parts["test"].images.digest(0)
    assert again.stamp(0) == data.parts["test"].images.stamp(0)


@pytest.mark.parametrize(
    "name", [n for n, t in TASKS.items() if "extended" in t.suites and n not in copies.SETS]
)
def test_every_set_of_the_extended_suite_is_read_by_some_test(name):
    assert name in {"mnist", "kmnist", "fashion_mnist", "sun397", "voc2007", "inat2017", "inat2021", "lvis"}


def test_what_torchvision_cannot_read_is_named(tmp_path):
    copies.SETS["cifar10"](tmp_path)
    assert "torchvision's CIFAR10 cannot read" in told("cifar10", tmp_path)
    assert "RuntimeError: Dataset not found or corrupted" in told("cifar10", tmp_path)


def test_a_task_on_small_classes_takes_thirty_of_each(tmp_path):
    copies.SETS["caltech101"](tmp_path)
    data = opened("caltech101", tmp_path)
    assert {role: set(np.bincount(part.labels)) for role, part in data.parts.items()} == {
        "train": {25},
        "val": {5},
        "test": {2},
    }


@pytest.mark.parametrize("name", ["mnist", "kmnist", "fashion_mnist"])
@pytest.mark.parametrize("below", ["", "raw", "FOLDER/raw", "../FOLDER/raw"])
def test_the_mnist_family_is_read(tmp_path, name, below):
    folder = TASKS[name].layouts[0].options["name"]
    copies.idx(tmp_path / name / below.replace("FOLDER", folder), packed=below != "raw")
    data = opened(name, tmp_path / name)
    assert len(data.parts["test"]) == 200
    assert data.parts["test"].ids[7] == "test_00007"
    cut(next((tmp_path).rglob("t10k-images*")))
    assert "t10k-images-idx3-ubyte" in told(name, tmp_path / name)


FASHION = Path(TASKS["fashion_mnist"].layouts[0].options["system"])


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's package is not installed")
def test_fashion_mnist_of_the_system_is_found_without_being_told():
    data = open_task(TASKS["fashion_mnist"])
    assert {role: len(part) for role, part in data.parts.items()} == {
        "train": 54000,
        "val": 6000,
        "test": 10000,
    }
    assert np.bincount(data.parts["test"].labels).tolist() == [1000] * 10


# -- several labels an image ---------------------------------------------------------------------------


def test_voc_has_several_labels_an_image(tmp_path):
    from mixmim_bench.data.layouts.voc import CLASSES

    copies.voc(tmp_path, CLASSES)
    data = opened("voc2007", tmp_path)
    test = data.parts["test"]
    assert test.labels.shape == (60, 20)
    folder = tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    for column, name in enumerate(CLASSES):
        flags = dict(line.split() for line in (folder / f"{name}_test.txt").read_text().splitlines())
        expected = [{"1": 1, "-1": 0, "0": -1}[flags[str(image)]] for image in test.ids]
        assert test.labels[:, column].tolist() == expected
    (folder / "cat_test.txt").write_text("000001 2\n")
    assert "cat_test.txt: expected a line such as '000012 -1', got '000001 2'" in told("voc2007", tmp_path)
    (folder / "cat_test.txt").write_text("000001 1\n")
    assert "lists other images than that of aeroplane" in told("voc2007", tmp_path)
