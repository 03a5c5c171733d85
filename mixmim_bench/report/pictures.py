"""Pictures of test images with their labels and what a run predicted, for tasks of any kind."""

import colorsys
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mixmim_bench.atomic import write_whole
from mixmim_bench.data.dataset import TaskData
from mixmim_bench.data.images import Part, UnreadableImage
from mixmim_bench.errors import BenchError
from mixmim_bench.report.text import markdown, one_line
from mixmim_bench.specs import RunRecord
from mixmim_bench.suite.records import RunStore

MOST = 8  # images
SIDE = 256  # pixels of an image's longer side
TEXT = 13  # pixels
LINES = 2  # of text under an image
OPACITY = 0.55  # of classes over an image
CERTAIN = 0.3  # detections with this score are drawn, and at least as many as there are objects
OTHER = (90, 90, 90)  # of ignored pixels

Panel = tuple[Image.Image, str]  # an image and the text under it
Draw = Callable[[int, Image.Image, "Drawn"], list[Panel]]


class Drawn:
    """What is known of a run: its test images, the names of the classes, and its saved arrays."""

    def __init__(self, part: Part, classes: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
        self.part = part
        self.classes = classes
        self.arrays = arrays
        self.place = {image: place for place, image in enumerate(arrays["ids"].tolist())}

    def rows(self) -> list[int]:
        """Return the rows of the images to draw: those whose predictions were kept, or some evenly."""
        kept = {int(name.split("_")[1]) for name in self.arrays if name.startswith("shown_")}
        if kept:
            return sorted(kept)
        read = [row for row, image in enumerate(self.part.ids.tolist()) if image in self.place]
        return [read[int(each)] for each in np.linspace(0, len(read) - 1, min(len(read), MOST)).round()]


def picture(
    record: RunRecord, arrays: Mapping[str, np.ndarray], data: TaskData, most: int = MOST
) -> Image.Image:
    """Draw some test images of a run, each with its labels and beside that with what was predicted.

    Raises:
        BenchError: the images here are not those of the run.
    """
    if record.identity["data"] != data.source.fingerprint:
        raise BenchError(
            f"{record.task}: the images in {data.source.root} differ from those of the run {record.run_id}"
        )
    drawn = Drawn(data.parts["test"], data.classes, arrays)
    draw = DRAWERS[record.identity["task"]["kind"]]
    rows = []
    for row in drawn.rows()[:most]:
        with suppress(UnreadableImage):  # of an image, or of its label map
            rows.append(draw(row, drawn.part.images.load(row), drawn))
    if not rows:
        raise BenchError(f"{record.task}: none of its test images can be read")
    title = one_line(f"{record.model} ({record.weights}) · {record.task_title} · {record.protocol_title}")
    return _sheet(rows, title)


# -- kinds of task -----------------------------------------------------------------------------------


def _draw_classes(row: int, image: Image.Image, drawn: Drawn) -> list[Panel]:
    """Draw an image with the names of its classes."""
    place, arrays = drawn.place[str(drawn.part.ids[row])], drawn.arrays
    labels = np.atleast_1d(drawn.part.labels[row])
    several = drawn.part.labels.ndim == 2
    true = np.flatnonzero(labels == 1) if several else labels
    key = "best" if "best" in arrays else "scores"
    values = arrays[key] if arrays[key].ndim == 2 else arrays[key][0]  # of one draw, or of the first
    order = values[place] if key == "best" else np.argsort(-values[place], kind="stable")
    predicted = order[: max(1, len(true))]
    right = set(predicted.tolist()) == set(true.tolist())
    names = [", ".join(drawn.classes[int(label)] for label in each) for each in (true, predicted)]
    return [(_small(image), f"label: {names[0]}\n{'right' if right else 'WRONG'}: {names[1]}")]


def _draw_maps(row: int, image: Image.Image, drawn: Drawn) -> list[Panel]:
    """Draw the classes of pixels over an image."""
    targets: Any = drawn.part.targets
    labels = np.asarray(targets.load(row))
    predicted = drawn.arrays[f"shown_{row}"]
    return [
        (_overlaid(image, labels), f"label: {_present(labels, drawn.classes)}"),
        (_overlaid(image, predicted), f"predicted: {_present(predicted, drawn.classes)}"),
    ]


def _present(labels: np.ndarray, classes: Sequence[str]) -> str:
    """Name the classes of a label map, the largest first."""
    found, counts = np.unique(labels[labels >= 0], return_counts=True)
    return ", ".join(classes[int(found[place])] for place in np.argsort(-counts, kind="stable")[:8])


def _overlaid(image: Image.Image, labels: np.ndarray) -> Image.Image:
    small = _small(image)
    palette = np.array([*(color_of(label) for label in range(int(labels.max(initial=0)) + 1)), OTHER])
    colors = Image.fromarray(palette[labels.astype(np.int64)].astype(np.uint8))
    return Image.blend(small, colors.resize(small.size, Image.Resampling.NEAREST), OPACITY)


def _draw_objects(row: int, image: Image.Image, drawn: Drawn) -> list[Panel]:
    """Draw boxes, classes and masks of objects over an image."""
    targets: Any = drawn.part.targets
    truth, arrays = targets.load(row), drawn.arrays
    scores = arrays[f"shown_{row}_scores"]
    kept = np.arange(max(int((scores >= CERTAIN).sum()), min(len(truth.labels), len(scores))))
    boxes, labels = arrays[f"shown_{row}_boxes"][kept], arrays[f"shown_{row}_labels"][kept]
    names = [
        f"{drawn.classes[int(label)]} {scores[place]:.2f}" for place, label in zip(kept, labels, strict=True)
    ]
    of_truth = [
        drawn.classes[int(label)] + (" (crowd)" if crowd else "")
        for label, crowd in zip(truth.labels, truth.crowd, strict=True)
    ]
    numbers = np.zeros(truth.size, dtype=np.int64)
    for place, each in enumerate(truth.masks or ()):
        numbers[_decoded(each) > 0] = place + 1
    predicted = arrays.get(f"shown_{row}_masks", np.zeros((1, 1), dtype=np.int64)).astype(np.int64)
    predicted = np.where(np.isin(predicted, kept + 1), predicted, 0)
    of_place = np.zeros(len(scores) + 1, dtype=np.int64)
    of_place[1:] = arrays[f"shown_{row}_labels"]
    return [
        (
            _outlined(image, truth.boxes, truth.labels, of_truth, numbers, np.append([0], truth.labels)),
            "label",
        ),
        (
            _outlined(image, boxes, labels, names, predicted, of_place),
            f"predicted, the {len(kept)} most certain",
        ),
    ]


def _decoded(rle: Any) -> np.ndarray:
    from pycocotools import mask

    return mask.decode(rle)


def _outlined(
    image: Image.Image,
    boxes: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    numbers: np.ndarray,
    label_of: np.ndarray,
) -> Image.Image:
    """Draw boxes with names, and the pixels of masks, which have the numbers of their objects, from 1 on."""
    small = _small(image)
    grown = Image.fromarray(numbers.astype(np.int32)).resize(small.size, Image.Resampling.NEAREST)
    own = np.asarray(grown)
    pixels = np.asarray(small).astype(np.float64)
    for number in np.unique(own[own > 0]):
        ink = np.array(color_of(int(label_of[number])))
        pixels[own == number] = (1 - OPACITY) * pixels[own == number] + OPACITY * ink
    result = Image.fromarray(pixels.astype(np.uint8))
    pen, font = ImageDraw.Draw(result), ImageFont.load_default(TEXT - 2)
    scale = small.width / image.width
    for box, label, name in zip(boxes, labels, names, strict=True):
        x0, y0, x1, y1 = (float(value) * scale for value in box)
        color = color_of(int(label))
        pen.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=color, width=2)
        pen.text((x0 + 3, y0 + 1), name, fill="white", font=font, stroke_width=1, stroke_fill="black")
    return result


# kind of task -> how its images are drawn
DRAWERS: dict[str, Draw] = {
    "classification": _draw_classes,
    "multilabel": _draw_classes,
    "segmentation": _draw_maps,
    "detection": _draw_objects,
}


# -- sheets ------------------------------------------------------------------------------------------


def color_of(label: int) -> tuple[int, int, int]:
    """Return a colour for a class, far from those of the classes before it."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1.0, 0.75 - 0.3 * (label % 2), 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _small(image: Image.Image) -> Image.Image:
    """Resize an image to be drawn."""
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def _sheet(rows: Sequence[Sequence[Panel]], title: str) -> Image.Image:
    """Arrange images with texts under them: two images of a row each, or four where there is one panel."""
    panels = [panel for row in rows for panel in row]
    columns = 4
    cell = (SIDE + 12, SIDE + 12 + (TEXT + 4) * LINES)
    top = TEXT + 16
    height = top + cell[1] * -(-len(panels) // columns)
    sheet = Image.new("RGB", (cell[0] * min(columns, len(panels)) + 12, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    pen.text((12, 8), title, fill="black", font=font)
    for place, (image, text) in enumerate(panels):
        x, y = 12 + place % columns * cell[0], top + place // columns * cell[1]
        sheet.paste(image, (x, y))
        for line, words in enumerate(text.split("\n")[:LINES]):
            pen.text((x, y + SIDE + 3 + line * (TEXT + 3)), _cut(words, pen, font), fill="black", font=font)
    return sheet


def _cut(text: str, pen: ImageDraw.ImageDraw, font: Any) -> str:
    """Cut a line to the width of an image."""
    if pen.textlength(text, font=font) <= SIDE:
        return text
    while text and pen.textlength(f"{text} …", font=font) > SIDE:
        text = text[:-1]
    return f"{text} …"


# -- files -------------------------------------------------------------------------------------------


def save_picture(path: Path, image: Image.Image) -> None:
    """Write a PNG whole or not at all."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    write_whole(path, buffer.getvalue())


def links(store: RunStore, records: Sequence[RunRecord]) -> str:
    """Return Markdown that links the pictures of runs, '' if there are none."""
    drawn = store.pictures()
    listed = [
        f"[{markdown(f'{record.model} ({record.weights}) · {record.task} · {record.protocol}')}]"
        f"(pictures/{record.run_id}.png)"
        for record in records
        if record.run_id in drawn
    ]
    if not listed:
        return ""
    lines = "\n".join(f"- {each}" for each in sorted(listed))
    return f"\n\nTest images with labels and predictions:\n\n{lines}"


def draw_finished(
    store: RunStore, records: Sequence[RunRecord], data: Iterable[TaskData], say: Callable[[str], None]
) -> None:
    """Draw the runs that have no picture yet; one that cannot be drawn is said, and no error."""
    of_fingerprint = {each.source.fingerprint: each for each in data}
    for record in records:
        path, images = store.picture_of(record.run_id), of_fingerprint.get(record.identity["data"])
        if path.exists() or images is None or record.control:
            continue
        try:
            save_picture(path, picture(record, store.arrays(record.run_id), images))
        except Exception as error:  # a picture is never worth a result
            say(f"no picture of {record.model} on {record.task}: {error}")
