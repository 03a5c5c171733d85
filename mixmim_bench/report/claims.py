"""The published figure of MixMIM's claim, accuracy against FLOPs, and tables beside it. Runs nothing."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixmim_bench.atomic import write_whole
from mixmim_bench.report.leaderboard import Leaderboard
from mixmim_bench.report.panels import Panel, Point, exact
from mixmim_bench.report.published import (
    MIXMIM,
    NOT_PUBLISHED,
    Published,
    load_published,
    methods,
    of_board,
    of_task,
)
from mixmim_bench.report.redraw import draw_if_changed
from mixmim_bench.report.text import markdown, markdown_table

NAME = "published"
FLOPS = "FLOPs of one image (billion multiply-adds, backbone)"
# methods with a colour of their own, beside MixMIM; others are in the background
SHOWN = (
    *(MIXMIM, "MAE", "FCMAE (ConvNeXt V2)", "SimMIM", "BEiT", "BEiT v2", "iBOT", "MoCo v3", "DINO", "CAE"),
    *("supervised (Swin)", "supervised (DeiT III)", "supervised (DeiT)"),
)
CLAIM = ("imagenet1k", "ImageNet-1K, fine-tuned")
TRANSFER = {
    "inat2018": "iNaturalist 2018, fine-tuned",
    "inat2019": "iNaturalist 2019, fine-tuned",
    "places205": "Places205, fine-tuned",
    "places365": "Places365, fine-tuned",
}
CAPTION = (
    "Published values, not measured here; one per backbone and image size (in brackets above 256 pixels). "
    "Pretrained on ImageNet-1K without labels, or trained on it from scratch; BEiT v2 learns from CLIP, "
    "which saw other images. Grey: other methods. Dashed: no other model is better at the same cost or less."
)
HEADS = ("ViTDet-style Mask R-CNN", "Cascade Mask R-CNN", "Mask R-CNN", "ViTDet", "UPerNet")
SCHEDULES = r"\d+ (?:fine-tuning )?epochs(?!.*pre-training)|[13]x schedule|160k iterations|16K iterations"
DENSE = {
    ("ade20k", "miou"): "ADE20K, mIoU",
    ("coco", "ap_box"): "COCO, box AP",
    ("coco", "ap_mask"): "COCO, mask AP",
}


@dataclass(frozen=True)
class Claims:
    """What was written, and the tables as Markdown."""

    markdown: str
    paths: list[Path]


def write_published(folder: Path) -> Claims:
    """Write `published.md`, and the figures `published.*` and `published_transfer.*`, to a folder."""
    paths = []
    for name, drawn in published_figures().items():
        paths += draw_if_changed(drawn, folder, name, CAPTION)
    text = published_tables()
    write_whole(folder / f"{NAME}.md", f"{text}\n".encode())
    return Claims(text, [*paths, folder / f"{NAME}.md"])


def published_figures() -> dict[str, list[Panel]]:
    """Return the figures of published values by the names of their files."""
    transfer = [_panel(task, title) for task, title in TRANSFER.items()]
    return {
        NAME: [_panel(*CLAIM)],
        f"{NAME}_transfer": [panel for panel in transfer if len(panel.points) > 2],
    }


def published_tables() -> str:
    """Return the published values as Markdown, with their sources."""
    return "\n\n".join([_overview(), *(_by_head(*key, title) for key, title in DENSE.items()), _sources()])


def _panel(task: str, title: str) -> Panel:
    rows = [row for row in of_task(task, "finetune", "top1") if row.gmacs]
    groups = [*SHOWN, *(name for name in _in_order(rows) if name not in SHOWN)]
    return Panel(title=[title], points=points_of(rows), groups=groups, cost=FLOPS, metric="top-1 accuracy")


def _in_order(rows: Iterable[Published]) -> list[str]:
    names = methods(rows)
    return [*(name for name in SHOWN if name in names), *(name for name in names if name not in SHOWN)]


def points_of(rows: Sequence[Published]) -> list[Point]:
    """Return published results as points.

    Those of MixMIM are named, of other methods the most expensive one; lines join the sizes of a method.
    """
    sizes: dict[str, int] = {}
    most: dict[str, Published] = {}
    for row in rows:
        sizes[row.method] = sizes.get(row.method, 0) + 1
        most[row.method] = max(row, most.get(row.method, row), key=lambda each: each.gmacs or 0.0)
    points = []
    for row in rows:
        ours, shown = row.method == MIXMIM, row.method in SHOWN
        point = exact(
            row.value / 100,
            label=row.model if ours else row.method,
            group=row.method,
            x=row.gmacs or 0.0,
            pale=not shown,
            named=ours or (shown and row is most[row.method]),
            bold=ours,
            joined=sizes[row.method] > 1 and shown,
        )
        points.append(point)
    return points


def _overview() -> str:
    """Return the values of fine-tuned base and large models on each task, and what MixMIM did not publish."""
    tasks = {CLAIM[0]: CLAIM[1], **TRANSFER}
    values = {task: {row.model: row for row in of_task(task, "finetune", "top1")} for task in tasks}
    models: dict[str, Published] = {}
    for rows in values.values():
        for model, row in rows.items():
            if row.method in SHOWN and (model not in models or models[model].gmacs is None):
                models[model] = row
    order = _in_order(models.values())
    table = []
    ordered = sorted(models.values(), key=lambda row: (order.index(row.method), row.gmacs or 0.0, row.model))
    for row in ordered:
        model = row.model
        if sum(model in rows for rows in values.values()) < 2 and row.method != MIXMIM:
            continue
        cells = {title: _value(values[task].get(model), row.method) for task, title in tasks.items()}
        table.append(
            {"Model": markdown(model), "FLOPs (G)": "" if row.gmacs is None else f"{row.gmacs:g}", **cells}
        )
    return f"## Fine-tuning, top-1\n\n{markdown_table(table)}"


def _value(row: Published | None, method: str) -> str:
    if row is None:
        return NOT_PUBLISHED if method == MIXMIM else ""
    text = f"{row.value:g}"
    return f"[{text}]({row.link})" if row.link else text


def _by_head(task: str, metric: str, title: str) -> str:
    """Return a table of a dense task by head and schedule, within which alone values compare."""
    rows = []
    every = [
        row for row in load_published() if (row.task, row.protocol, row.metric) == (task, "finetune", metric)
    ]
    for row in every:
        head = next((head for head in HEADS if head in row.note), "not stated")
        schedule = re.search(SCHEDULES, row.note)
        epochs = f", {row.pretrain_epochs} epochs" if row.pretrain_epochs else ""
        rows.append(
            {
                "Head": head,
                "Schedule": schedule[0] if schedule else "not stated",
                "Model": markdown(row.model),
                "Pretraining": markdown(row.pretrain_data + epochs),
                "Value": _value(row, row.method),
            }
        )
    if not any(row.method == MIXMIM for row in every):
        rows.append({"Head": "", "Schedule": "", "Model": MIXMIM, "Pretraining": "", "Value": NOT_PUBLISHED})
    rows.sort(key=lambda row: (row["Head"], row["Schedule"], row["Model"]))
    about = "Compare within a head and schedule only. Costs of whole models are not published in one way."
    return f"## {title}\n\n{about}\n\n{markdown_table(rows)}"


def _sources() -> str:
    return (
        "Values are those of the linked sources. In the first table, of several values of a model that "
        "of the most official source is shown, and of these the best; longer pretraining is not told apart. "
        "`mixmim_bench/published/published.csv` has every value with its epochs and notes."
    )


def beside(board: Leaderboard) -> str:
    """Return a table of the published results of the tasks and protocols of a leaderboard, '' for none."""
    rows: dict[str, dict[str, str]] = {}
    titles = []
    for (task, protocol), found in of_board(board).items():
        titles.append(markdown(f"{task} {protocol} {found[0].metric}"))
        for row in found:
            name = f"{row.model}, {row.pretrain_data}"
            about = {"Model": markdown(row.model), "Pretraining": markdown(row.pretrain_data)}
            costs = {"FLOPs (G)": "" if row.gmacs is None else f"{row.gmacs:g}"}
            rows.setdefault(name, {**about, **costs})[titles[-1]] = _value(row, row.method)
    if not rows:
        return ""
    names = ["Model", "Pretraining", "FLOPs (G)", *titles]
    table = [{name: row.get(name, "") for name in names} for row in rows.values()]
    title = "Published by others: not measured here, in no average or comparison above."
    return f"{title}\n\n{markdown_table(table)}"
