"""The results folder: one JSON a run, predictions beside it, and the measured costs."""

import dataclasses
import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mixmim_bench.atomic import write_whole
from mixmim_bench.errors import BenchError
from mixmim_bench.specs import RECORD_SCHEMA, Cost, RunRecord


class RunStore:
    """Records by run id. A record that is there is whole: it is written last, and in one piece."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.costs = folder / "costs"

    def prepare(self) -> None:
        """Make the folders and see that they can be written; raises BenchError."""
        try:
            for folder in (self.runs, self.costs):
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise BenchError(
                f"results cannot be written to {self.folder}: {error.strerror}; choose another folder "
                "with --results"
            ) from error

    def save(self, record: RunRecord, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a record; what is beside it first, so that a record is never without it."""
        if arrays:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **arrays)
            write_whole(self.runs / f"{record.run_id}.npz", buffer.getvalue())
        write_whole(self.runs / f"{record.run_id}.json", record.to_json().encode())

    def _read(self, folder: Path, broken: list[str]) -> Iterator[dict[str, Any]]:
        for path in sorted(folder.glob("*.json")):
            try:
                yield json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                broken.append(str(path))

    def records(self, broken: list[str] | None = None) -> list[RunRecord]:
        """Read every record; the names of files that are none go to `broken`."""
        broken = [] if broken is None else broken
        known = {field.name for field in dataclasses.fields(RunRecord)}
        found = []
        for values in self._read(self.runs, broken):
            if values.get("schema") != RECORD_SCHEMA or not set(values) <= known:
                broken.append(str(self.runs / f"{values.get('run_id')}.json"))
                continue
            values["image_size"] = tuple(values["image_size"])
            values["notes"] = tuple(values["notes"])
            found.append(RunRecord(**values))
        return found

    def finished(self) -> set[str]:
        """Return the ids of the runs that need not be done again; a failed one is not among them."""
        return {record.run_id for record in self.records() if not record.error}

    def arrays(self, run_id: str) -> dict[str, np.ndarray]:
        """Read what stands beside a record: predictions, and curves of the protocol."""
        with np.load(self.runs / f"{run_id}.npz", allow_pickle=False) as file:
            return dict(file)

    def save_cost(self, key: str, cost: Cost) -> None:
        """Write a measurement."""
        text = json.dumps(dataclasses.asdict(cost), indent=1, sort_keys=True)
        write_whole(self.costs / f"{key}.json", text.encode())

    def read_costs(self) -> dict[str, Cost]:
        """Read every measurement, by its key."""
        found = {}
        for path in sorted(self.costs.glob("*.json")):
            try:
                values = json.loads(path.read_text(encoding="utf-8"))
                values["image_size"] = tuple(values["image_size"])
                values["uncounted"] = tuple(values["uncounted"])
                found[path.stem] = Cost(**values)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # it will be measured again
        return found
