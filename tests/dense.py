"""Small dense datasets on disk, in the layouts of the real ones."""

import json
from pathlib import Path

import numpy as np
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
