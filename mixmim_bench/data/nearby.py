"""Suggest where the missing images of a task may be, for error messages."""

import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path

DEEP = 3  # levels searched below a task's folder
MOST = 20  # folders searched per level
SHOWN = 8  # names shown of a folder's contents
# names of part folders in other copies -> the expected names
OTHER_NAMES = {"validation": "val", "valid": "val", "training": "train"}


def hint(
    names: Sequence[str], root: Path, is_there: Callable[[Path], bool], tasks: Collection[str], wanted: str
) -> str:
    """Suggest a likely location of missing images, or describe the contents of their folder.

    Args:
        names: names of the dataset, starting with that of its folder.
        root: the expected folder.
        is_there: returns whether a folder contains the images.
        tasks: names of tasks, whose folders are not candidates.
        wanted: a description of the expected files.

    Returns:
        The hint, '' if there is none.
    """
    if root.is_dir():
        return _inside(names[0], root, is_there, wanted)
    return _around(names, root, is_there, tasks)


def _inside(name: str, root: Path, is_there: Callable[[Path], bool], wanted: str = "") -> str:
    subfolder = next((folder for folder in _below(root, DEEP) if is_there(folder)), None)
    if subfolder is not None:
        return f"it may be in {subfolder}: --data-root {name}={subfolder}"
    renames = [
        f"{theirs}/ should be named {ours}/: rename or link it"
        for theirs, ours in OTHER_NAMES.items()
        if str(root / ours) in wanted and (root / theirs).is_dir() and not (root / ours).exists()
    ]
    if renames:
        return "; ".join(renames)
    try:
        with os.scandir(root) as entries:
            names = sorted(entry.name + "/" * entry.is_dir() for entry in islice(entries, 1000))
    except OSError as error:
        return f"{root} cannot be listed: {error.strerror}"
    if not names:
        return f"{root} is empty"
    return f"{root} contains {', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}"


def _around(
    names: Sequence[str], root: Path, is_there: Callable[[Path], bool], tasks: Collection[str]
) -> str:
    if not root.parent.is_dir():
        return ""
    siblings = [folder for folder in _folders(root.parent) if folder.name not in tasks]
    similar = [folder for folder in siblings if any(_alike(folder.name, name) for name in names)]
    for folder in [root.parent, root.parent.parent, *similar]:
        if is_there(folder):
            return f"it may be in {folder}: --data-root {names[0]}={folder}"
    for folder in similar:
        return f"it may be in {folder} ({_inside(names[0], folder, is_there)})"
    return ""


def _alike(a: str, b: str) -> bool:
    """Return whether two names are equal up to case, punctuation and suffixes."""
    short, long = sorted((re.sub("[^a-z0-9]", "", text.casefold()) for text in (a, b)), key=len)
    return len(short) > 3 and long.startswith(short)


def _below(root: Path, depth: int) -> Iterator[Path]:
    """Yield some subfolders of a folder, level by level."""
    level = [root]
    for _ in range(depth):
        level = [folder for parent in level for folder in _folders(parent)][:MOST]
        yield from level


def _folders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            folders = (Path(e.path) for e in entries if e.is_dir() and not e.name.startswith("."))
            return sorted(islice(folders, MOST))
    except OSError:
        return []
