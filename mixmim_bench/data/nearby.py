"""Hints where missing images of a task may be, for error messages."""

import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path

DEEP = 3  # levels below the folder of a task
MOST = 20  # folders of one level that are looked into
SHOWN = 8  # names of what is there
# folders of other copies, and how ours are called
OTHER_NAMES = {"validation": "val", "valid": "val", "training": "train"}


def hint(
    names: Sequence[str], root: Path, is_there: Callable[[Path], bool], tasks: Collection[str], wanted: str
) -> str:
    """Describe candidates near the folder `root` of a task, '' if there are none.

    Args:
        names: of the dataset, starting with its folder.
        root: the expected folder.
        is_there: returns whether a folder holds the images.
        tasks: names of tasks, whose folders are not candidates.
        wanted: describes the expected files.

    """
    if root.is_dir():
        return _inside(names[0], root, is_there, wanted)
    return _around(names, root, is_there, tasks)


def _inside(name: str, root: Path, is_there: Callable[[Path], bool], wanted: str = "") -> str:
    folder_inside = next((folder for folder in _below(root, DEEP) if is_there(folder)), None)
    if folder_inside is not None:
        return f"perhaps it lies in {folder_inside}: --data-root {name}={folder_inside}"
    renamed = [
        f"{theirs}/ should be called {ours}/: rename it, or link it"
        for theirs, ours in OTHER_NAMES.items()
        if str(root / ours) in wanted and (root / theirs).is_dir() and not (root / ours).exists()
    ]
    if renamed:
        return "; ".join(renamed)
    try:
        with os.scandir(root) as entries:
            names = sorted(entry.name + "/" * entry.is_dir() for entry in islice(entries, 1000))
    except OSError as error:
        return f"{root} cannot be listed: {error.strerror}"
    if not names:
        return f"{root} is empty"
    return f"{root} holds {', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}"


def _around(
    names: Sequence[str], root: Path, is_there: Callable[[Path], bool], tasks: Collection[str]
) -> str:
    if not root.parent.is_dir():
        return ""
    beside = [folder for folder in _folders(root.parent) if folder.name not in tasks]
    alike = [folder for folder in beside if any(_alike(folder.name, name) for name in names)]
    for folder in [root.parent, root.parent.parent, *alike]:
        if is_there(folder):
            return f"perhaps it lies in {folder}: --data-root {names[0]}={folder}"
    for folder in alike:
        return f"perhaps it lies in {folder} ({_inside(names[0], folder, is_there)})"
    return ""


def _alike(a: str, b: str) -> bool:
    """Return whether two names are equal except for case, dashes and suffixes."""
    short, long = sorted((re.sub("[^a-z0-9]", "", text.casefold()) for text in (a, b)), key=len)
    return len(short) > 3 and long.startswith(short)


def _below(root: Path, depth: int) -> Iterator[Path]:
    """Yield some subfolders of a folder, level by level."""
    level = [root]
    for _ in range(depth):
        level = [folder for above in level for folder in _folders(above)][:MOST]
        yield from level


def _folders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            folders = (Path(e.path) for e in entries if e.is_dir() and not e.name.startswith("."))
            return sorted(islice(folders, MOST))
    except OSError:
        return []
