"""Data roots and trusted folders, from options, the environment and a config file.

The config file is $MIXMIM_BENCH_CONFIG, else `config.toml` in the platform's config folder:

    data_root = "/data"                 # contains a folder NAME for each task
    trusted_tasks = ["/home/me/tasks"]  # folders whose task files may run their own code
    [roots]
    imagenet1k = "/data/ILSVRC2012"     # the folder of a single task
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixmim_bench.errors import BenchError, TaskFileError
from mixmim_bench.specs import TaskSpec
from mixmim_bench.tomlfile import read_toml

DATA_VARIABLE = "MIXMIM_BENCH_DATA"
CONFIG_VARIABLE = "MIXMIM_BENCH_CONFIG"


@dataclass(frozen=True)
class DataRoots:
    """Where to find the images of tasks, and which folders of task files are trusted.

    Attributes:
        base: a folder with one folder per task.
        of_task: folders of single tasks, by name.
        trusted: folders whose task files may run their own code.
    """

    base: Path | None = None
    of_task: Mapping[str, Path] = field(default_factory=dict)
    trusted: tuple[Path, ...] = ()

    def __bool__(self) -> bool:
        return self.base is not None or bool(self.of_task)

    def folder(self, task: TaskSpec) -> Path:
        """Return the expected folder of a task's images."""
        for name in (task.dataset, task.folder):
            if name in self.of_task:
                return self.of_task[name]
        if task.root:
            return (Path(task.path).parent / Path(task.root).expanduser()).resolve()
        return (self.base or Path()) / (task.folder or task.dataset)

    def knows(self, task: TaskSpec) -> bool:
        """Return whether a data root for the task is configured."""
        named = task.dataset in self.of_task or task.folder in self.of_task
        return self.base is not None or named or bool(task.root)

    def trusts(self, folder: Path) -> bool:
        """Return whether code next to the task files of a folder may run."""
        return any(folder.is_relative_to(each) for each in self.trusted)

    def over(self, other: "DataRoots") -> "DataRoots":
        """Merge with other roots, which have lower priority."""
        of_task = {**other.of_task, **self.of_task}
        return DataRoots(self.base or other.base, of_task, (*self.trusted, *other.trusted))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, for another process."""
        return {
            "base": None if self.base is None else str(self.base),
            "of_task": {name: str(path) for name, path in self.of_task.items()},
            "trusted": list(map(str, self.trusted)),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "DataRoots":
        """Restore the roots from the output of `to_json`."""
        return cls(
            None if values["base"] is None else Path(values["base"]),
            {name: Path(path) for name, path in values["of_task"].items()},
            tuple(map(Path, values["trusted"])),
        )


def parse_roots(texts: Sequence[str]) -> DataRoots:
    """Parse FOLDER and NAME=FOLDER; raises BenchError for conflicting folders."""
    base: Path | None = None
    of_task: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if equals and name and os.sep not in name:
            of_task[name] = Path(folder).expanduser()
        elif base is not None:
            raise BenchError(
                f"two data roots, {base} and {text}; use one for all tasks, and NAME=FOLDER for single tasks"
            )
        else:
            base = Path(text).expanduser()
    return DataRoots(base, of_task)


def find_roots(options: Sequence[str] = (), trust_task_code: bool = False) -> DataRoots:
    """Combine options, environment and config file, in this order of priority.

    Args:
        options: FOLDER and NAME=FOLDER.
        trust_task_code: whether to trust the code next to any task file.

    Raises:
        BenchError: an option, the environment or the config file is invalid.
    """
    trusted = DataRoots(trusted=(Path(Path.cwd().anchor),) if trust_task_code else ())
    from_environment = [text for text in os.environ.get(DATA_VARIABLE, "").split(os.pathsep) if text]
    return parse_roots(options).over(parse_roots(from_environment)).over(_from_config()).over(trusted)


def config_file() -> Path:
    """Return the path of the config file, which must exist only if the environment sets it."""
    path = os.environ.get(CONFIG_VARIABLE)
    if path:
        return Path(path).expanduser()
    from platformdirs import user_config_path

    return user_config_path("mixmim-bench", appauthor=False) / "config.toml"


def _from_config() -> DataRoots:
    path = config_file()
    if not path.is_file() and CONFIG_VARIABLE not in os.environ:
        return DataRoots()
    top = read_toml(path)
    base = top.take("data_root", str, "")
    trusted = top.take("trusted_tasks", list, [])
    folders = top.table("roots", {})
    of_task = {name: folders.take(name, str) for name in list(folders.values)}
    top.finish()
    folders_by_key = {
        "data_root": base,
        **{f"roots.{name}": folder for name, folder in of_task.items()},
        **{f"trusted_tasks[{i}]": folder for i, folder in enumerate(trusted)},
    }
    for key, folder in folders_by_key.items():
        if not isinstance(folder, str):
            raise TaskFileError(path, key, f"must be a path, not {folder!r}")
        if folder and not Path(folder).expanduser().is_absolute():
            raise TaskFileError(path, key, f"must be an absolute path, not {folder!r}")
    return DataRoots(
        Path(base).expanduser() if base else None,
        {name: Path(folder).expanduser() for name, folder in of_task.items()},
        tuple(Path(folder).expanduser().resolve() for folder in trusted),
    )
