"""Results that others have published: data of the package, never mixed with measured ones.

`published/README.md` describes the columns and their caveats. Nothing there was measured by this project.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from mixmim_bench.report.leaderboard import Column, Leaderboard
from mixmim_bench.specs import ModelSpec, Weights

MIXMIM = "MixMIM"
NOT_PUBLISHED = "not published"
# pretraining without other images or labels than those of ImageNet-1K
SAME_IMAGES = ("ImageNet-1K", "none (from scratch)")
# of several values of one model the first of these is shown
PREFERRED = ("official_readme", "paper_table", "third_party_table", "model_zoo")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published result; texts are as printed, numbers None where the source has none."""

    method: str
    backbone: str
    pretrain_data: str
    pretrain_epochs: str
    input_size: int | None  # side in pixels
    params_m: float | None
    gmacs: float | None
    task: str
    protocol: str
    metric: str
    value: float  # percent
    source: str
    source_kind: str
    note: str

    @property
    def model(self) -> str:
        """The method with its backbone and, above 256 pixels, its image size."""
        name = self.backbone if self.method == MIXMIM else f"{self.method} {self.backbone}"
        large = self.input_size is not None and self.input_size > 256
        return f"{name} ({self.input_size})" if large else name

    @property
    def link(self) -> str:
        """The address of the source: an http(s) address, or '' if it is not one."""
        if self.source.startswith(("https://", "http://")):
            return self.source.split()[0]
        found = re.match(r"([\w.-]+/[\w.-]+):([^\s#]+)", self.source)
        if found:
            return f"https://github.com/{found[1]}/blob/HEAD/{found[2]}"
        found = re.search(r"arXiv[: ](\d{4}\.\d{4,5})", self.source)
        return f"https://arxiv.org/abs/{found[1]}" if found else ""


@cache
def load_published() -> tuple[Published, ...]:
    """Read all published results of the package."""
    text = resources.files("mixmim_bench").joinpath("published", "published.csv").read_text(encoding="utf-8")
    return tuple(_read(row) for row in csv.DictReader(text.splitlines()))


def _read(row: dict[str, str]) -> Published:
    def number(key: str) -> float | None:
        return float(row[key]) if row[key] else None

    size = number("input_size")
    texts = ("method", "backbone", "pretrain_data", "pretrain_epochs", "task", "protocol", "metric", "source")
    return Published(
        **{key: row[key] for key in (*texts, "source_kind", "note")},
        input_size=None if size is None else int(size),
        params_m=number("params_m"),
        gmacs=number("gmacs"),
        value=float(row["value"]),
    )


def of_task(
    task: str, protocol: str, metric: str, pretrain_data: Sequence[str] = SAME_IMAGES
) -> list[Published]:
    """Return the published results of a task, one of each model, sorted by method, FLOPs and backbone.

    Of several values of a model (method, backbone, image size and pretraining images), the best one of the
    most official kind of source is taken.
    """
    wanted: dict[tuple[str, str, int | None, str], Published] = {}
    for row in load_published():
        if (row.task, row.protocol, row.metric) != (task, protocol, metric):
            continue
        if pretrain_data and row.pretrain_data not in pretrain_data:
            continue
        key = (row.method, row.backbone, row.input_size, row.pretrain_data)
        if key not in wanted or _rank(row) < _rank(wanted[key]):
            wanted[key] = row
    return sorted(wanted.values(), key=lambda row: (row.method, row.gmacs or 0.0, row.backbone))


def of_board(board: Leaderboard) -> dict[Column, list[Published]]:
    """Return the published results of the columns of a leaderboard that have some, in their ranked metric."""
    found = {column: of_task(*column, board.first(column).metric, ()) for column in board.columns}
    return {column: rows for column, rows in found.items() if rows}


def _rank(row: Published) -> tuple[int, float]:
    return PREFERRED.index(row.source_kind), -row.value


def of_weights(model: ModelSpec, weights: Weights) -> dict[str, float]:
    """Return the published scores of a checkpoint of a registered model, metric -> percent; empty if none."""
    for checkpoint in model.weights:
        same = weights.name == checkpoint.name or (
            bool(checkpoint.sha256) and weights.sha256.startswith(checkpoint.sha256)
        )
        if same:
            return dict(checkpoint.published)
    return {}


def methods(rows: Iterable[Published]) -> list[str]:
    """Return the methods of results, MixMIM first, then in alphabetical order."""
    names = {row.method for row in rows}
    return sorted(names, key=lambda name: (name != MIXMIM, name.casefold()))
