"""Errors that users can act on: each names what is wrong, the closest valid name and a fix."""

import difflib
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any


class BenchError(Exception):
    """A problem with the input or the machine, reported in one message without a traceback."""


class UnknownName(BenchError):
    """An unknown name, with the closest known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        super().__init__(f"no {kind} {name!r}; {nearest(name, known)}{hint and '; ' + hint}")


class TaskFileError(BenchError):
    """An invalid task file (or model, suite or config file), reported with the key at fault."""

    def __init__(self, path: object, key: str, problem: str) -> None:
        super().__init__(f"{path}: {key}: {problem}" if key else f"{path}: {problem}")


class MissingData(BenchError):
    """The images of a task were not found on this machine.

    Attributes:
        looked_for: what each layout expects, in short.
        near: a similar folder that was found instead, '' if none.
    """

    def __init__(self, message: str, looked_for: Sequence[str] = (), near: str = "") -> None:
        super().__init__(message)
        self.looked_for = tuple(looked_for)
        self.near = near


class MissingWeights(BenchError):
    """The weights of a model are neither on this machine nor downloadable; `reason` says briefly why."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class UnreadableImages(BenchError):
    """Images that cannot be decoded, listed with the reasons."""


def a_few(names: Sequence[str]) -> str:
    """List the first three names and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def counted(number: int, thing: str, things: str = "") -> str:
    """Format a count: '1 image', '2 images'."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the known names closest to a wrong one; if none is close, list the first twelve."""
    names = sorted(set(known))
    folded = {n.casefold(): n for n in names}
    matches = [folded[n] for n in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
    if matches:
        return f"did you mean {' or '.join(matches)}?"
    if not names:
        return "none are known"
    return f"known: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}"


def show_warnings(say: Callable[[str], None]) -> None:
    """Print user warnings in one line each, others like Python."""
    otherwise = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if issubclass(category, UserWarning):
            say(f"Warning: {' '.join(str(message).split())}")
        else:
            otherwise(message, category, *args, **kwargs)

    warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)  # timm's import
    warnings.showwarning = show
