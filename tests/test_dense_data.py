"""Label maps and objects on disk: layouts, what they refuse, and the scenes made for a fresh machine."""

import hashlib
import io
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from dense import coco_json, write_ade, write_coco, write_part
from PIL import Image
from pycocotools import mask
from pycocotools.coco import COCO as Official

from mixmim_bench.cli import main
from mixmim_bench.data import annotations
from mixmim_bench.data.dataset import Split, open_task
from mixmim_bench.data.images import Part, UnreadableImage, join
from mixmim_bench.data.index import fingerprint
from mixmim_bench.data.joint import DetectionEval, DetectionTrain, SegmentationTrain, View
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.data.layouts.ade20k import Challenge
from mixmim_bench.data.layouts.coco import COCO
from mixmim_bench.data.layouts.pairs import MaskCSV, MaskFolders
from mixmim_bench.data.layouts.scenes import PARTS, Detected, Segmented, png, scenes, write_scenes
from mixmim_bench.data.loading import ImageDataset
from mixmim_bench.data.objects import Ragged
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.data.windows import Windows, windows
from mixmim_bench.errors import BenchError, MissingData
from mixmim_bench.seeding import seed_everything
from mixmim_bench.specs import Preprocessing
from mixmim_bench.suite.taskfile import read_task

TASKS = Path(__file__).parents[1] / "tasks"
PLAIN = Preprocessing(
    size=(32, 32), crop_pct=1.0, crop_mode="center", interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3
)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXMIM_BENCH_CACHE", str(tmp_path / "cache"))


def write_task(folder, kind, num_classes, options, split, layout, metrics):
    lines = [
        "schema = 1\nversion = 1",
        f'kind = "{kind}"\ntitle = "mine"\nnum_classes = {num_classes}\nmetrics = {json.dumps(metrics)}',
        f'[data]\nroot = "."\nlayouts = ["{layout}"]',
        f"[data.options]\n{options}",
        "[split]\n" + "\n".join(f'{role} = "{cut}"' for role, cut in split.items()),
    ]
    path = folder / "mine.toml"
    path.write_text("\n".join(lines))
    return read_task(path)


# -- label maps: ADE20K ------------------------------------------------------------------------------


def ade(folder, **options):
    return Challenge(folder, ["training", "validation"], classes=150, reduce_zero_label=True, **options)


@pytest.mark.parametrize("below", ["", "ADEChallengeData2016"])
def test_the_benchmark_of_ade20k(tmp_path, below):
    folder = write_ade(tmp_path / below)
    layout = ade(tmp_path)
    assert layout.missing() == ""
    part = layout.part("training")
    assert list(part.ids[:2]) == ["ADE_train_00000000", "ADE_train_00000001"]
    raw = np.asarray(Image.open(folder / "annotations/training/ADE_train_00000001.png")).astype(int)
    assert np.array_equal(part.targets.load(1), np.where(raw == 0, -1, raw - 1))
    assert part.targets.pixels().sum() + (part.targets.found.pixels[:, -1]).sum() == 6 * 40 * 56


def test_the_full_release_of_ade20k_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "images" / "ADE" / "training").mkdir(parents=True)
    with pytest.raises(LayoutError, match=r"full release of ADE20K.*ADEChallengeData2016\.zip"):
        ade(tmp_path).missing()


def test_the_task_files_read_their_layouts(tmp_path):
    write_ade(tmp_path / "ade20k" / "ADEChallengeData2016")
    with pytest.raises(BenchError, match=r"data\.counts\.training: is 20210, but the data has 6"):
        open_task(read_task(TASKS / "ade20k.toml"), DataRoots(tmp_path))
    categories = list(range(1, 91))[:80]
    write_coco(tmp_path / "coco", categories=categories)
    with pytest.raises(BenchError, match=r"data\.counts\.train2017: is 118287, but the data has 4"):
        open_task(read_task(TASKS / "coco.toml"), DataRoots(tmp_path))
    (tmp_path / "lvis").mkdir()
    with pytest.raises(MissingData, match=r"lvis_v1_train\.json"):
        open_task(read_task(TASKS / "lvis.toml"), DataRoots(tmp_path))


def test_class_names_come_from_the_benchmarks_list(tmp_path):
    write_ade(tmp_path)
    rows = [
        "Idx\tRatio\tTrain\tVal\tStuff\tName",
        *(f"{i}\t0\t1\t1\t1\tthing {i}, object" for i in range(1, 151)),
    ]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(rows))
    assert ade(tmp_path).classes()[:2] == ("thing 1", "thing 2")


# -- label maps: any folders and lists ---------------------------------------------------------------


def write_pairs(folder, values=(0, 1, 2), images="images", maps="masks", suffix="", parts=("train", "val")):
    rng = np.random.default_rng(1)
    for part in parts:
        (folder / images.format(part=part)).mkdir(parents=True, exist_ok=True)
        (folder / maps.format(part=part)).mkdir(parents=True, exist_ok=True)
        for number in range(3):
            name = f"{part}_{number}"
            Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)).save(
                folder / images.format(part=part) / f"{name}.jpg"
            )
            Image.fromarray(rng.choice(values, (8, 10)).astype(np.uint8)).save(
                folder / maps.format(part=part) / f"{name}{suffix}.png"
            )


@pytest.mark.parametrize(
    ("images", "maps", "suffix"),
    [
        ("images/{part}", "masks/{part}", ""),
        ("{part}/images", "{part}/labels", "_mask"),
        ("leftImg8bit/{part}", "gtFine/{part}", "_labelIds"),
    ],
)
def test_folders_of_pairs_in_users_variants(tmp_path, images, maps, suffix):
    write_pairs(tmp_path, images=images, maps=maps, suffix=suffix)
    layout = MaskFolders(
        tmp_path, ["train", "val"], ["a", "b", "c"], images=images, maps=maps, map_suffix=suffix
    )
    assert layout.missing() == "" and layout.classes() == ("a", "b", "c")
    assert len(layout.part("train")) == 3 and layout.part("val").targets.load(0).shape == (8, 10)


def test_lists_name_the_images_of_parts_as_in_voc(tmp_path):
    write_pairs(tmp_path, images="JPEGImages", maps="SegmentationClass", parts=("x", "y"))
    for part, names in (("train", "x_0\nx_1\n"), ("val", "y_2\n")):
        (tmp_path / f"{part}.txt").write_text(names)
    layout = MaskFolders(
        tmp_path, ["train", "val"], 3, images="JPEGImages", maps="SegmentationClass", lists="{part}.txt"
    )
    assert [len(layout.part(part)) for part in ("train", "val")] == [2, 1]
    (tmp_path / "val.txt").write_text("y_2\nz_9\n")
    with pytest.raises(LayoutError, match="lists 1 missing image: z_9"):
        layout.part("val")


def test_a_csv_of_pairs(tmp_path):
    write_pairs(tmp_path, values=(0, 255), images="images", maps="masks")
    for part in ("train", "val"):
        rows = [f"images/{part}_{i}.jpg,masks/{part}_{i}.png" for i in range(3)]
        (tmp_path / f"{part}.csv").write_text("\n".join(["path,mask", *rows]))
    files = {"train": "train.csv", "val": "val.csv"}
    layout = MaskCSV(tmp_path, ["train", "val"], files, ["background", "object"], values=[0, 255])
    assert set(np.unique(layout.part("val").targets.load(2))) == {0, 1}
    (tmp_path / "val.csv").write_text("path,mask\nimages/val_0.jpg,masks/none.png")
    again = MaskCSV(tmp_path, ["train", "val"], files, ["background", "object"], values=[0, 255])
    with pytest.raises(LayoutError, match=r"1 of 1 images have no label map.*none\.png"):
        again.part("val")


def of_one_map(folder, pixels, num_classes=3, name="masks", **options):
    write_pairs(folder, parts=("train",))
    for path in (folder / "masks").iterdir():
        (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path)
    layout = MaskFolders(folder, ["train"], num_classes, images="images", maps=name, **options)
    return layout.part("train")


def problem(part):
    return part.targets.first_wrong(3, part.images)


def test_values_of_pixels(tmp_path):
    plain = np.arange(80).reshape(8, 10).astype(np.uint8) % 3
    assert problem(of_one_map(tmp_path / "a", plain)) is None
    three = np.repeat(plain[..., None], 3, axis=2)  # as saved by libraries that know only colour images
    assert np.array_equal(of_one_map(tmp_path / "b", three).targets.load(0), plain)
    part = of_one_map(tmp_path / "c", plain * 100, values=[0, 100, 200])
    assert np.array_equal(part.targets.load(0), plain)
    part = of_one_map(tmp_path / "d", np.where(plain == 2, 255, plain).astype(np.uint8), ignore=[255])
    assert np.array_equal(part.targets.load(0) == -1, plain == 2) and problem(part) is None
    sixteen = plain.astype(np.uint16) * 1000
    part = of_one_map(tmp_path / "e", sixteen, values=[0, 1000, 2000])
    assert np.array_equal(part.targets.load(0), plain)
    other = of_one_map(tmp_path / "o", plain * 100, values=[200, 100, 0])
    assert fingerprint_of(other) != fingerprint_of(
        of_one_map(tmp_path / "c", plain * 100, values=[0, 100, 200])
    )
    colors = [[0, 0, 0], [128, 64, 128], [244, 35, 232]]
    indexed = Image.fromarray(plain, mode="P")
    indexed.putpalette([value for color in colors for value in color])
    part = of_one_map(tmp_path / "p", indexed, colors=colors[1:], num_classes=2, ignore=colors[:1])
    assert np.array_equal(part.targets.load(0), plain.astype(int) - 1)
    part = of_one_map(tmp_path / "f", np.array(colors, dtype=np.uint8)[plain], colors=colors)
    assert np.array_equal(part.targets.load(0), plain) and problem(part) is None


def test_bad_values_of_pixels_are_named(tmp_path):
    plain = np.arange(80).reshape(8, 10).astype(np.uint8) % 4
    assert "the value 3 in" in problem(of_one_map(tmp_path / "a", plain))
    colored = np.array([[0, 0, 0], [1, 2, 3], [9, 9, 9], [7, 7, 1]], dtype=np.uint8)[plain]
    assert "a label map in colour; state `colors" in problem(of_one_map(tmp_path / "b", colored))
    part = of_one_map(tmp_path / "c", colored, colors=colored[0, :3].tolist())
    assert "the colour (7, 7, 1)" in problem(part)
    assert "has 5 x 10 pixels, but its image 8 x 10" in problem(of_one_map(tmp_path / "d", plain[:5] % 3))
    for options, words in (
        ({"values": [0, 1]}, "must be 3 different numbers"),
        ({"ignore": [1]}, "the value 1 is a class, and ignored"),
        ({"colors": [[0, 0, 0]]}, "must be 3 different colours"),
        ({"colors": [1, 2, 3]}, r"must be colours \[r, g, b\]"),
        ({"ignore": [-1]}, "must be integers from 0 to"),
    ):
        with pytest.raises(LayoutError, match=words):
            MaskFolders(tmp_path, ["train"], 3, **options)


def test_damaged_label_maps_are_named(tmp_path):
    write_pairs(tmp_path, parts=("train",))
    path = tmp_path / "masks" / "train_1.png"
    path.write_bytes(path.read_bytes()[:30])
    layout = MaskFolders(tmp_path, ["train"], 3, images="images", maps="masks")
    assert "train_1.png cannot be read" in problem(layout.part("train"))
    path.write_bytes(b"")
    assert "train_1.png cannot be read" in problem(layout.part("train"))


def test_label_maps_and_images_must_come_in_pairs(tmp_path):
    write_pairs(tmp_path, parts=("train",))
    layout = MaskFolders(tmp_path, ["train"], 3, images="images", maps="masks")
    extra = tmp_path / "masks" / "alone.png"
    shutil.copy(tmp_path / "masks" / "train_0.png", extra)
    with pytest.raises(LayoutError, match="1 label map without an image: alone"):
        layout.part("train")
    extra.unlink()
    (tmp_path / "masks" / "train_0.png").unlink()
    with pytest.raises(LayoutError, match=r"1 of 3 images have no label map: .*train_0\.png"):
        layout.part("train")
    shutil.copy(tmp_path / "images" / "train_1.jpg", tmp_path / "images" / "train_1.png")
    with pytest.raises(LayoutError, match="two images of the same name"):
        layout.part("train")


def test_the_survey_is_cached_and_follows_the_files(tmp_path):
    write_pairs(tmp_path, parts=("train",))
    layout = MaskFolders(tmp_path, ["train"], 3, images="images", maps="masks")
    first = fingerprint_of(layout.part("train"))
    assert list((tmp_path / "cache" / "listings").glob("label-maps-*.npz"))
    assert fingerprint_of(layout.part("train")) == first
    path = tmp_path / "masks" / "train_0.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0] = (pixels[0, 0] + 1) % 3
    Image.fromarray(pixels).save(path)
    assert fingerprint_of(layout.part("train")) != first


def fingerprint_of(part):
    return fingerprint(dict.fromkeys(("train", "val", "test"), part))


# -- objects: COCO and LVIS --------------------------------------------------------------------------


def coco_part(folder, part="train2017", **options):
    files = {name: f"annotations/instances_{name}.json" for name in ("train2017", "val2017")}
    return COCO(folder, ["train2017", "val2017"], files, **options).part(part)


def test_objects_are_those_of_pycocotools(tmp_path):
    write_coco(tmp_path, images=5, per_image=3)
    part = coco_part(tmp_path)
    theirs = Official(str(tmp_path / "annotations" / "instances_train2017.json"))
    labels = {category: label for label, category in enumerate(sorted(theirs.cats))}
    for row, image in enumerate(sorted(theirs.imgs)):
        ours, entries = part.targets.load(row), theirs.loadAnns(theirs.getAnnIds(image))
        assert ours.size == (40, 56)
        np.testing.assert_array_equal(ours.labels, [labels[each["category_id"]] for each in entries])
        np.testing.assert_array_equal(ours.areas, [each["area"] for each in entries])
        boxes = np.array([each["bbox"] for each in entries], dtype=float)
        np.testing.assert_array_equal(ours.boxes, np.c_[boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
        for own, entry in zip(ours.masks, entries, strict=True):
            assert np.array_equal(mask.decode(own), theirs.annToMask(entry))


@pytest.mark.parametrize("folder", ["train2017", "images/train2017", "images", "."])
def test_images_are_found_where_users_put_them(tmp_path, folder):
    write_coco(tmp_path)
    if folder != "train2017":
        target = tmp_path / folder
        target.mkdir(parents=True, exist_ok=True)
        for path in (tmp_path / "train2017").iterdir():
            shutil.move(path, target / path.name)
    assert len(coco_part(tmp_path, ids="name")) == 4
    assert coco_part(tmp_path, ids="name").ids[0] == "000000000001"


def test_boxes_alone_are_enough(tmp_path):
    write_coco(tmp_path, masks=False)
    assert coco_part(tmp_path).targets.load(0).masks is None


def test_lvis_states_which_classes_are_absent(tmp_path):
    content = coco_json()
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = [5, 90], [1]
    write_coco(tmp_path)
    for part in ("train", "val"):
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    layout = COCO(tmp_path, ["train"], {"train": "train.json"}, {"train": "."}, ids="name")
    part = layout.part("train")
    assert part.ids[0] == "000000000001"
    assert part.targets.load(0).absent.tolist() == [1, 2] and part.targets.load(0).incomplete.tolist() == [0]
    half = part.take(np.array([3, 1]))
    assert half.targets.load(1).absent.tolist() == [1, 2]


def changed(folder, change):
    """Write a set of which an annotation file is changed, and list the part."""
    write_coco(folder)
    path = folder / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return coco_part(folder)


def set_first(key, value):
    def change(content):
        content["annotations"][0][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_first("category_id", 2), "annotation 1 has the category 2, which is not in `categories`"),
        (set_first("image_id", 99), "annotation 1 is of image 99, which is not listed"),
        (set_first("id", 2), "two annotations have the id 2"),
        (set_first("bbox", [1, 2, 3]), r"annotation 1 has the box \[1, 2, 3\]"),
        (set_first("segmentation", [[1, 2, 3]]), "the segmentation of annotation 1: a polygon needs three"),
        (set_first("segmentation", {"size": [40, 56], "counts": [7]}), "run lengths add up to 7"),
        (set_first("segmentation", []), "1 annotation of 8 have no segmentation, such as 1"),
        (
            set_first("segmentation", {"size": [20, 15], "counts": [300]}),
            "20 x 15 pixels, but its image 40 x 56",
        ),
        (set_first("bbox", [5]), r"annotation 1 has the box \[5\]"),
        (lambda content: content["annotations"].append([1]), "an entry is not an object"),
        (lambda content: content["images"][0].pop("file_name"), "has no 'file_name'"),
        (lambda content: content["annotations"][0].pop("bbox"), "has no 'bbox'"),
        (lambda content: content.pop("categories"), "has no list 'categories'"),
        (lambda content: content["categories"].append({"id": 7, "name": "new"}), "different categories"),
        (lambda content: content["images"].append(content["images"][0]), "two images have the same id"),
    ],
)
def test_wrong_annotations_are_named(tmp_path, change, words):
    with pytest.raises(LayoutError, match=words):
        changed(tmp_path, change)


def test_annotations_may_lack_ids_areas_and_crowds(tmp_path):
    def change(content):
        for entry in content["annotations"]:
            entry["id"] = None
            del entry["area"], entry["iscrowd"]

    objects = changed(tmp_path, change).targets.load(0)
    boxes = objects.boxes
    np.testing.assert_array_equal(objects.areas, (boxes[:, 2:] - boxes[:, :2]).prod(1))
    assert not objects.crowd.any()


def test_parts_with_and_without_masks_or_objects(tmp_path):
    write_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    empty = coco_part(tmp_path, "val2017")
    assert "none of its 4 images" in empty.targets.first_wrong(3, empty.images)
    assert len(join([coco_part(tmp_path), empty]).targets) == 8
    for entry in content["annotations"]:
        del entry["segmentation"]
    path.write_text(json.dumps(content))
    with pytest.raises(LayoutError, match="either all have, or none"):
        coco_part(tmp_path, "val2017")


@pytest.mark.parametrize("key", ["annotations", "images"])
def test_options_that_are_no_tables(tmp_path, key):
    options = {"annotations": {"train": "a.json"}, key: "train"}
    with pytest.raises(LayoutError, match="must be a table"):
        COCO(tmp_path, ["train"], **options)


def test_absolute_paths_of_images(tmp_path):
    def change(content):
        for image in content["images"]:
            image["file_name"] = str(tmp_path / "train2017" / image["file_name"])

    assert len(changed(tmp_path, change)) == 4


def test_what_a_large_annotation_file_holds_is_cached(tmp_path, monkeypatch):
    write_coco(tmp_path, images=5)
    content = json.loads((tmp_path / "annotations" / "instances_train2017.json").read_text())
    for image in content["images"]:
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = [5], []
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    plain = coco_part(tmp_path)
    monkeypatch.setattr(annotations, "WORTH_KEEPING", 0)
    first = coco_part(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(annotations, "read_coco", None)  # what is cached is not parsed again
        again = coco_part(tmp_path)
    assert list(plain.targets.contents()) == list(first.targets.contents()) == list(again.targets.contents())
    assert again.targets.load(0).absent.tolist() == [1] and list(again.ids) == list(plain.ids)
    assert [again.images.paths[row] for row in range(5)] == [plain.images.paths[row] for row in range(5)]
    kept = list((tmp_path / "cache" / "listings").glob("annotations-*.npz"))
    assert len(kept) == 2
    for path in kept:
        path.write_bytes(b"x")
    assert list(coco_part(tmp_path).targets.contents()) == list(plain.targets.contents())


@pytest.mark.parametrize("longest", [3, 200])
def test_ragged_rows_are_taken_and_joined(longest):
    rng = np.random.default_rng(longest)
    rows = [rng.integers(0, 99, rng.integers(0, longest + 1)) for _ in range(40)]
    packed = Ragged.of(rows, np.int64)
    for chosen in (np.array([5, 5, 0, 39]), np.empty(0, dtype=np.int64), rng.integers(0, 40, 100)):
        taken = packed.take(chosen)
        assert [each.tolist() for each in map(taken.__getitem__, range(len(taken)))] == [
            rows[row].tolist() for row in chosen
        ]
    both = packed.joined([packed.take(np.array([7]))])
    assert len(both) == 41 and both[40].tolist() == rows[7].tolist()


def test_a_missing_and_a_cut_annotation_file(tmp_path):
    write_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train2017.json"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(LayoutError, match="not JSON or truncated"):
        coco_part(tmp_path)
    path.unlink()
    layout = COCO(tmp_path, ["train2017"], {"train2017": "annotations/instances_train2017.json"})
    assert "instances_train2017.json" in layout.missing()


def test_images_that_are_absent_or_empty(tmp_path):
    write_coco(tmp_path)
    path = tmp_path / "train2017" / "000000000002.jpg"
    path.write_bytes(b"")
    part = coco_part(tmp_path)
    dataset = ImageDataset(part.images, DetectionEval(PLAIN, size=64), part.targets)
    assert "cannot identify" in dataset[1].failure and not dataset[0].failure
    path.unlink()
    with pytest.raises(LayoutError, match="lists 1 missing image"):
        coco_part(tmp_path)


def test_boxes_outside_or_without_area_are_scored_but_not_learnt(tmp_path):
    def change(content):
        content["annotations"][0]["bbox"] = [100, 10, 20, 20]  # of an image 56 pixels wide
        content["annotations"][1]["bbox"] = [10, 10, 0, 5]

    part = changed(tmp_path, change)
    assert len(part.targets.load(0).labels) == 2
    assert part.targets.with_objects().tolist() == [1, 2, 3]
    assert part.targets.remarks() == [
        "1 boxes without an area are left out of training",
        "1 boxes outside their images are left out of training",
    ]
    seed_everything(0)
    _, target = DetectionTrain(PLAIN, size=64)(part.images.load(0), part.targets.load(0))
    assert len(target["boxes"]) == 0
    negative = changed(tmp_path / "n", set_first("bbox", [5, 5, -3, 4]))
    assert "width -3" in negative.targets.first_wrong(3, negative.images)


def test_images_without_objects_and_crowds(tmp_path):
    def change(content):
        content["annotations"] = content["annotations"][2:]
        content["annotations"][0]["iscrowd"] = content["annotations"][1]["iscrowd"] = 1

    part = changed(tmp_path, change)
    assert len(part) == 4 and len(part.targets.load(0).labels) == 0
    assert part.targets.with_objects().tolist() == [2, 3]  # the second image has crowds only
    assert part.targets.load(1).crowd.all()


def test_another_size_than_annotated_is_reported(tmp_path):
    write_coco(tmp_path)
    Image.new("RGB", (30, 30)).save(tmp_path / "train2017" / "000000000001.jpg")
    part = coco_part(tmp_path)
    with pytest.raises(UnreadableImage, match="state 40 x 56 pixels, but the image has 30 x 30"):
        DetectionTrain(PLAIN, size=64)(part.images.load(0), part.targets.load(0))


def test_names_that_occur_in_two_splits(tmp_path):
    write_coco(tmp_path)
    content = coco_json()
    write_part(tmp_path, "val2017", content)  # the names of train2017, in another folder
    options = (
        'annotations = { train2017 = "annotations/instances_train2017.json", '
        'val2017 = "annotations/instances_val2017.json" }'
    )
    split = {"train": "train2017[:50%]", "val": "train2017[50%:]", "test": "val2017"}
    task = write_task(tmp_path, "detection", 3, options, split, "coco:COCO", ["ap_box"])
    assert open_task(task, DataRoots()).counts == {"train": 2, "val": 2, "test": 4}
    same = write_task(tmp_path, "detection", 3, options + '\nids = "name"', split, "coco:COCO", ["ap_box"])
    with pytest.raises(BenchError, match="is listed twice"):
        open_task(same, DataRoots())


def test_objects_are_taken_joined_and_fingerprinted(tmp_path):
    write_coco(tmp_path, images=5, per_image=2)
    part = coco_part(tmp_path)
    both = join([part.take(np.array([4, 0])), part.take(np.array([2]))])
    for row, own in enumerate((4, 0, 2)):
        mine, theirs = both.targets.load(row), part.targets.load(own)
        assert np.array_equal(mine.boxes, theirs.boxes) and mine.masks == theirs.masks
    contents = list(part.targets.contents())
    assert list(both.targets.contents()) == [contents[4], contents[0], contents[2]]
    assert part.targets.per_class(3).sum() >= 5

    def change(content):
        content["annotations"][-1]["segmentation"][0][0] += 1

    other = changed(tmp_path / "other", change)
    write_coco(tmp_path / "same")
    assert list(other.targets.contents())[:3] == list(coco_part(tmp_path / "same").targets.contents())[:3]
    assert list(other.targets.contents())[3] != list(coco_part(tmp_path / "same").targets.contents())[3]


# -- transforms --------------------------------------------------------------------------------------


def test_boxes_follow_their_masks_through_a_training_transform(tmp_path):
    write_coco(tmp_path, images=4, per_image=3)
    part = coco_part(tmp_path)
    transform = DetectionTrain(PLAIN, size=96, jitter=(0.8, 2.0))
    seen = 0
    for seed in range(40):
        seed_everything(seed)
        image, target = transform(part.images.load(seed % 4), part.targets.load(seed % 4))
        height, width = target["size"].tolist()
        assert image.shape == (3, 96, 96) and not image[:, height:].any() and not image[:, :, width:].any()
        for box, own in zip(target["boxes"], target["masks"], strict=True):
            rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
            around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(
                box, around, atol=2.0
            )  # masks are rectangles, resized by nearest pixels
            seen += 1
    assert seen > 60


def test_a_view_shows_the_same_of_image_and_label_map():
    ramp = np.tile(np.arange(64, dtype=np.uint8)[None], (48, 1)) * 4
    view = View(height=96, width=128, top=10, left=30, window=(40, 50))
    pixels = np.asarray(view.pixels(Image.fromarray(ramp), Image.Resampling.BILINEAR)).astype(float)
    labels = view.nearest(ramp).astype(float)
    assert pixels.shape == labels.shape == (40, 50)
    assert np.abs(pixels - labels).max() <= 4


def test_flips_crops_and_padding_keep_label_maps_with_their_images():
    """Images whose pixels spell their labels."""
    labels = np.random.default_rng(0).integers(0, 12, (6, 9)).repeat(8, 0).repeat(8, 1).astype(np.int16)
    image = Image.fromarray(np.repeat((labels * 20).astype(np.uint8)[..., None], 3, axis=2))
    nearest = Preprocessing(**{**vars(PLAIN), "interpolation": "nearest"})
    transform = SegmentationTrain(nearest, size=48, scale=(0.7, 1.6), photometric=False)
    for seed in range(20):
        seed_everything(seed)
        pixels, target = transform(image, labels)
        valid = target >= 0
        assert target.shape == (48, 48)
        same = (pixels[0] * 255 / 20).round()[valid] == target[valid]
        assert same.float().mean() > 0.94  # but for rounding at edges
        assert not pixels[:, ~valid].any()


def test_windows_cover_images(tmp_path):
    for height, width, crop, stride in (
        (40, 100, 40, 40),
        (64, 64, 64, 40),
        (33, 70, 32, 20),
        (10, 90, 32, 20),
    ):
        covered = np.zeros((height, width), dtype=bool)
        for top, left, h, w in windows(height, width, crop, stride):
            assert h == min(crop, height) and w == min(crop, width)
            covered[top : top + h, left : left + w] = True
        assert covered.all()
    write_ade(tmp_path, size=(40, 100))
    part = ade(tmp_path).part("training")
    of_part = Windows(part, PLAIN, 40, 40)
    assert len(of_part) == 18 and of_part.images.tolist() == [row for row in range(6) for _ in range(3)]
    assert of_part.load(1).size == (40, 40)
    assert np.array_equal(of_part.as_part().targets.load(1), part.targets.load(0)[:, 40:80])


# -- scenes ------------------------------------------------------------------------------------------

FINGERPRINTS = {"segmentation": "81a283e5ca089e85", "detection": "15712e1c09eccb05"}


def scene_split(layout):
    parts = {role: layout.part(part) for role, part in zip(("train", "val", "test"), PARTS, strict=True)}
    return {role: Split(role, part).part for role, part in parts.items()}


def test_the_fingerprints_of_the_scenes_stay():
    for kind, layout in (("segmentation", Segmented), ("detection", Detected)):
        assert fingerprint(scene_split(layout(Path(), list(PARTS)))) == FINGERPRINTS[kind]


def test_scenes_are_whole_and_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr("mixmim_bench.data.layouts.scenes.write_scenes", write_scenes)  # each time, really
    Segmented(Path(), ["testing"]).part("testing")
    folder = tmp_path / "cache" / "scenes" / "v1"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    Detected(Path(), ["testing"]).part("testing")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")} == before
    (folder / "whole").unlink()
    lost = folder / "images" / "testing" / "scene_testing_00001.png"
    digest = hashlib.sha256(lost.read_bytes()).digest()
    lost.unlink()
    Segmented(Path(), ["testing"]).part("testing")
    assert hashlib.sha256(lost.read_bytes()).digest() == digest


def test_the_masks_of_scenes_are_true():
    for scene, _ in zip(scenes("testing"), range(10), strict=False):
        assert (scene.masks.sum(0) <= 1).all() and not (scene.masks & scene.void).any()
    part = Detected(Path(), ["testing"]).part("testing")
    maps = Segmented(Path(), ["testing"]).part("testing").targets
    for row in range(10):
        objects, labels = part.targets.load(row), maps.load(row)
        for label, own, area in zip(objects.labels, objects.masks, objects.areas, strict=True):
            inside = mask.decode(own).astype(bool)
            assert inside.sum() == area and (labels[inside] == label + 1).all()


def test_the_png_writer_is_read_back():
    for shape in ((3, 5), (130, 190, 3)):
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)


def test_regions_and_digits_of_parts_are_disjoint():
    shares = [share for _, _, share in PARTS.values()]
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(shares))
    digits = [cut for _, cut, _ in PARTS.values()]
    split = read_task(TASKS / "digits.toml").split
    assert digits == [split[role] for role in ("train", "val", "test")]


# -- doctor ------------------------------------------------------------------------------------------


def test_doctor_knows_dense_layouts(tmp_path):
    write_ade(tmp_path / "ade20k")
    for number in range(6):
        (tmp_path / "ade20k" / "images" / "validation" / f"ADE_valid_{number:08d}.jpg").touch()
    result = CliRunner().invoke(main, ["doctor", "--json", "-t", "ade20k", "--data-root", str(tmp_path)])
    report = json.loads(result.stdout)["tasks"][0]
    assert report["state"] == "wrong" and any("20210" in each for each in report["problems"])
    (tmp_path / "ade20k" / "annotations" / "training" / "more.png").write_bytes(b"x")
    result = CliRunner().invoke(main, ["doctor", "--json", "-t", "ade20k", "--data-root", str(tmp_path)])
    (report,) = json.loads(result.stdout)["tasks"]
    assert any("label map without an image" in each for each in report["problems"])


def test_doctor_counts_boxes_that_cannot_be_learnt(tmp_path):
    write_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] = 0
    path.write_text(json.dumps(content))
    options = (
        'annotations = { train2017 = "annotations/instances_train2017.json", '
        'val2017 = "annotations/instances_val2017.json" }'
    )
    split = {"train": "train2017[:50%]", "val": "train2017[50%:]", "test": "val2017"}
    write_task(tmp_path, "detection", 3, options, split, "coco:COCO", ["ap_box"])
    result = CliRunner().invoke(main, ["doctor", "-t", str(tmp_path / "mine.toml")])
    assert "train2017: 1 boxes without an area are left out of training" in result.stdout


def test_parts_of_dense_targets_have_no_labels(tmp_path):
    write_coco(tmp_path)
    part = coco_part(tmp_path)
    assert isinstance(part, Part)
    with pytest.raises(TypeError, match="Objects are not class labels"):
        _ = part.labels
