"""Datasets of the Hugging Face Hub, as parquet files that `fetch-data` wrote."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixmim_bench.atomic import read_json, write_whole
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.data.layouts.parquet import Parquet
from mixmim_bench.errors import BenchError, nearest

MANIFEST = "source.json"
SHARD_BYTES = 500e6
GROUP = 100  # rows that are decoded together


class HuggingFace(Parquet):
    """`hf:OWNER/NAME`: splits of a dataset of the Hub, each in files `PART-00000.parquet` of the root.

    The id of an image is its part and position, such as `train_00042`.

    Args:
        root: the folder.
        parts: the required parts.
        repository: `OWNER/NAME`.
        splits: part -> split of the dataset; by default, of the same name.
        image: the column of images.
        label: the column of labels: class numbers or names.
        config: of the dataset, if it has several.
        revision: a branch, tag or commit.
        classes: the standard order of the classes; by default that of the dataset.
    """

    def __init__(
        self,
        root: Path,
        parts: Sequence[str],
        repository: str,
        splits: Mapping[str, str] | None = None,
        image: str = "image",
        label: str = "label",
        config: str = "",
        revision: str = "main",
        classes: Any = None,
    ) -> None:
        files = {part: f"{part}-*.parquet" for part in parts}
        super().__init__(root, parts, files, image, label, classes=classes)
        self.root = root
        self.splits = {part: (splits or {}).get(part, part) for part in parts}
        self.wanted = {"repository": repository, "config": config, "revision": revision}

    def missing(self) -> str:
        manifest = read_json(self.root / MANIFEST)
        if not manifest and not super().missing():
            return f"{self.root / MANIFEST}, which fetch-data writes"
        splits = manifest.get("splits", {})
        if manifest and (
            any(manifest.get(key) != value for key, value in self.wanted.items())
            or any(splits.get(part) != split for part, split in self.splits.items())
        ):
            return (
                f"{self.wanted['repository']} at {self.wanted['revision']} with these splits in {self.root}, "
                "which holds another"
            )
        return super().missing()

    def fetch(self, folder: Path) -> str:
        """Download the splits and write them to a folder; returns what was fetched. Raises BenchError."""
        try:
            import datasets
            from datasets.table import embed_table_storage
            from huggingface_hub import HfApi
        except ImportError as error:
            raise BenchError(
                f"it needs the package datasets: pip install 'mixmim-bench[datasets]' ({error})"
            ) from error
        name, config = self.wanted["repository"], self.wanted["config"] or None
        commit = HfApi().dataset_info(name, revision=self.wanted["revision"]).sha or ""
        cache = folder / ".hub"
        there = datasets.load_dataset(name, config, revision=commit, cache_dir=str(cache))
        for part, split in self.splits.items():
            if split not in there:
                raise LayoutError(f"{name} has no split {split!r}; {nearest(split, there)}", "data.layouts")
            rows = there[split]
            for column in (self.image, self.label):
                if column not in rows.column_names:
                    raise LayoutError(
                        f"{name} has no column {column!r}; {nearest(column, rows.column_names)}",
                        "data.layouts",
                    )
            rows = rows.select_columns([self.image, self.label])
            rows = rows.cast_column(self.image, datasets.Image(decode=False))
            shards = max(1, round((rows.dataset_size or 0) / SHARD_BYTES))
            for number in range(shards):
                shard = rows.shard(shards, number, contiguous=True).with_format("arrow")
                shard = shard.map(embed_table_storage, batched=True, batch_size=GROUP, keep_in_memory=False)
                shard.with_format(None).to_parquet(folder / f"{part}-{number:05d}.parquet", batch_size=GROUP)
        shutil.rmtree(cache)
        about = {**self.wanted, "commit": commit, "splits": self.splits}
        write_whole(folder / MANIFEST, json.dumps(about, indent=1).encode())
        return f"{name} at {commit[:8]}"
