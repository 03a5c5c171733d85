"""Small dense datasets on disk, in the layouts of the real ones."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from conftest import scanned_digits
from PIL import Image

TASKS = Path(__file__).parents[1] / "tasks"


def write_ade(folder, n=6, parts=("training", "validation"), size=(40, 56), classes=150, extension="jpg"):
    """ADE20K's benchmark with made-up images: 0 is ignored, 1 to K are classes."""
    rng = np.random.default_rng(0)
    for part in parts:
        for name in ("images", "annotations"):
            (folder / name / part).mkdir(parents=True, exist_ok=True)
        for number in range(n):
            stem = f"ADE_{part[:5]}_{number:08d}"
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / part / f"{stem}.{extension}")
            labels = rng.integers(0, classes + 1, size).astype(np.uint8)
            Image.fromarray(labels).save(folder / "annotations" / part / f"{stem}.png")
    return folder


def coco_json(
    images=4, per_image=2, categories=(1, 5, 90), size=(40, 56), masks=True, name="{:012d}.jpg", start=1
):
    """COCO's content with gaps between category ids: polygons, and run lengths for every third object."""
    rng = np.random.default_rng(images)
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": each, "name": f"thing {each}"} for each in categories]
    for image in range(start, start + images):
        content["images"].append(
            {"id": image, "file_name": name.format(image), "height": size[0], "width": size[1]}
        )
        for _ in range(per_image):
            number = len(content["annotations"]) + 1
            x, y = (int(each) for each in rng.integers(1, 20, 2))
            w, h = (int(each) for each in rng.integers(6, 18, 2))
            entry = {
                "id": number,
                "image_id": image,
                "category_id": int(rng.choice(categories)),
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
            }
            if masks:
                entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            if masks and number % 3 == 0:
                flat = np.zeros(size, dtype=bool)
                flat[y : y + h, x : x + w] = True
                changes = np.flatnonzero(np.diff(flat.T.ravel())) + 1
                counts = np.diff([0, *changes, flat.size]).tolist()
                entry["segmentation"] = {"size": list(size), "counts": counts}
            content["annotations"].append(entry)
    return content


def write_coco(folder, parts=("train2017", "val2017"), **options):
    """COCO's layout; image ids and file names differ between the parts."""
    for place, part in enumerate(parts):
        content = coco_json(start=1 + 1000 * place, **options)
        write_part(folder, part, content)
    return folder


def write_part(folder, part, content):
    (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    rng = np.random.default_rng(7)
    for image in content["images"]:
        pixels = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        path = folder / part / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))


def small_scenes(folder, name, test=16):
    """Write a task of digit scenes with fewer images: 40, 10 and some of the test images."""
    text = (TASKS / f"{name}.toml").read_text()
    for part, cut in (("training", "[:40]"), ("validation", "[:10]"), ("testing", f"[:{test}]")):
        text = text.replace(f'= "{part}"', f'= "{part}{cut}"')
    path = folder / f"small-{name}.toml"
    path.write_text(text)
    return path


EASY = """
schema = 1
version = 1
kind = "{kind}"
title = "Large digits"
num_classes = {classes}
metrics = ["{metric}"]
forbid = ["hflip"]

[data]
root = "."
{data}

[image]
size = 64

[split]
train = "train[:90%]"
val = "train[90%:]"
test = "val"
"""
MAPS = """layouts = ["pairs:MaskFolders"]

[data.options]
images = "{part}/images"
maps = "{part}/masks"
classes = ["background", "zero", "one", "two"]
"""
BOXES = """layouts = ["coco:COCO"]

[data.options]
annotations = { train = "train.json", val = "val.json" }
images = { train = "train", val = "val" }
"""


def large_digits(part: str, side: int) -> Iterator[tuple[str, int, Image.Image]]:
    """Yield name, label and image of real digits 0, 1 and 2, at random places of 64 x 64 pixels."""
    data, rng = scanned_digits(), np.random.default_rng(len(part))
    rows = slice(0, 60) if part == "train" else slice(60, 80)
    for label in range(3):
        for row in np.flatnonzero(data.target == label)[rows]:
            digit = Image.fromarray((data.images[row] * 15.9).astype(np.uint8))
            image = Image.new("L", (64, 64))
            x, y = (int(each) for each in rng.integers(0, 64 - side + 1, 2))
            image.paste(digit.resize((side, side), Image.Resampling.BILINEAR), (x, y))
            yield f"{row}.png", label, image


def write_easy_maps(folder):
    """Write a segmentation task that a small network learns in a hundred steps."""
    for part in ("train", "val"):
        for name in ("images", "masks"):
            (folder / part / name).mkdir(parents=True)
        for name, label, image in large_digits(part, side=56):
            image.save(folder / part / "images" / name)
            drawn = np.asarray(image) > 64
            Image.fromarray(drawn * np.uint8(label + 1)).save(folder / part / "masks" / name)
    path = folder / "easy-seg.toml"
    path.write_text(EASY.format(kind="segmentation", classes=4, metric="miou", data=MAPS))
    return path


def write_easy_boxes(folder):
    """Write a detection task that a small network learns in a hundred steps."""
    for part in ("train", "val"):
        (folder / part).mkdir(parents=True)
        content = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [{"id": label, "name": str(label)} for label in range(3)]
        for number, (name, label, image) in enumerate(large_digits(part, side=40), start=1):
            image.save(folder / part / name)
            left, top, right, bottom = image.getbbox()
            box = [left, top, right - left, bottom - top]
            content["images"].append({"id": number, "file_name": name, "height": 64, "width": 64})
            entry = {"id": number, "image_id": number, "category_id": label, "bbox": box}
            content["annotations"].append({**entry, "area": box[2] * box[3], "iscrowd": 0})
        (folder / f"{part}.json").write_text(json.dumps(content))
    path = folder / "easy-det.toml"
    path.write_text(EASY.format(kind="detection", classes=3, metric="ap_box_50", data=BOXES))
    return path
