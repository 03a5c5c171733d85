"""Real datasets on their real layouts: small copies, read whole, and all that can be wrong with them."""

import dataclasses
import pickle
import shutil

import copies
import numpy as np
import pytest

from mixmim_bench.data.dataset import open_task
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.data.selection import load_tasks
from mixmim_bench.errors import MissingData, TaskFileError
from mixmim_bench.specs import ROLES

TASKS = load_tasks()


def opened(name, root, counts=None):
    """Open a task of the suite on a small copy in `root`."""
    task = dataclasses.replace(TASKS[name], counts=counts or {})
    return open_task(task, DataRoots(of_task={name: root}))


def told(name, root):
    """Return the error that a wrong copy brings."""
    with pytest.raises((TaskFileError, MissingData)) as caught:
        opened(name, root)
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
        assert data.fingerprint == reference.fingerprint


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
        ("folders", lambda r: shutil.rmtree(r / "val" / "n01440764"), "n01440764 are lacking"),
        (
            "folders",
            lambda r: (r / "train" / "n01440764").rename(r / "train" / "fish"),
            "fish are no classes",
        ),
        (
            "lists",
            lambda r: (r / "val" / "ILSVRC2012_val_00000007.JPEG").unlink(),
            "lists 1 images that are not",
        ),
        (
            "lists",
            lambda r: (r / "meta" / "val.txt").write_text("a.JPEG 1000\n"),
            "images that are not there",
        ),
        (
            "lists",
            lambda r: (r / "meta" / "val.txt").write_text("a.JPEG\n"),
            "val.txt:1: 'a.JPEG' is no line",
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
            "does not say of which class",
        ),
        (
            "unpacked",
            lambda r: cut(r / "ILSVRC2012_devkit_t12" / "data" / "meta.mat"),
            "meta.mat cannot be read",
        ),
        ("archives", lambda r: cut(r / "ILSVRC2012_img_train.tar"), "it is cut short or no archive"),
        ("archives", lambda r: cut(r / "ILSVRC2012_img_val.tar", 0.98), "it is cut short or no archive"),
        ("archives", lambda r: cut(r / "ILSVRC2012_devkit_t12.tar.gz"), "fetch it again"),
        ("archives", lambda r: (r / "ILSVRC2012_img_val.tar").unlink(), "archives"),
        ("shards", lambda r: cut(r / "imagenet1k-train-0002.tar"), "imagenet1k-train-0002.tar: "),
        ("shards", lambda r: cut(r / "imagenet1k-train-0002.tar", 0.9), "it is cut short or no archive"),
        (
            "shards",
            lambda r: copies.tar(r / "imagenet1k-train-0009.tar", {"a.jpg": b"1"}),
            "a has no .cls, but jpg",
        ),
        (
            "shards",
            lambda r: copies.tar(r / "imagenet1k-train-0009.tar", {"a.cls": b"1"}),
            "the sample a has 0 images, not one",
        ),
        (
            "shards",
            lambda r: copies.tar(r / "imagenet1k-train-0009.tar", {"a.jpg": b"1", "a.cls": b"fish"}),
            "the label of a cannot be read",
        ),
        (
            "shards",
            lambda r: copies.tar(r / "imagenet1k-train-0009.tar", {"a.jpg": b"1", "a.cls": b"1"}),
            "holds no id such as",
        ),
        ("parquet", lambda r: cut(r / "data" / "train-00001-of-00002.parquet"), "cannot be read as parquet"),
        (
            "parquet",
            lambda r: copies.parquet(r / "data" / "train-1.parquet", [b"a"], [1], image="img"),
            "has no column 'image' of images, but img: binary, label: int64",
        ),
        (
            "parquet",
            lambda r: copies.parquet(r / "data" / "train-1.parquet", [b"a"], [1.5]),
            "has no column 'label' of labels, but image: binary, label: double",
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
    assert "is none of the 1000 classes (0 to 999)" in told("imagenet1k", root)


def test_another_count_than_the_official_one_is_reported(imagenet):
    with pytest.raises(TaskFileError, match=r"data\.counts\.train: is 1281167, and there are 2000"):
        opened("imagenet1k", imagenet / "archives", TASKS["imagenet1k"].counts)


def test_a_shard_that_changes_is_listed_anew(tmp_path):
    copies.imagenet_shards(tmp_path)
    before = opened("imagenet1k", tmp_path)
    copies.tar(
        tmp_path / "imagenet1k-train-0004.tar",
        {"n01440764_9999.jpg": copies.jpegs()[0], "n01440764_9999.cls": b"0"},
    )
    after = opened("imagenet1k", tmp_path)
    assert sum(map(len, after.parts.values())) == sum(map(len, before.parts.values())) + 1
    assert after.fingerprint != before.fingerprint


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
