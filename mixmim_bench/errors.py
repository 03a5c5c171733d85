"""Errors that a user can act on: each names the thing, the nearest right one and the way out."""

import difflib
from collections.abc import Iterable, Sequence


class BenchError(Exception):
    """A mistake of the input or the machine, told in one message without a traceback."""


class UnknownName(BenchError):
    """A name that is not in a table, with the nearest ones that are."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        super().__init__(f"no {kind} {name!r}; {nearest(name, known)}{hint and '; ' + hint}")


class TaskFileError(BenchError):
    """A task file that cannot be used, named with its key."""

    def __init__(self, path: object, key: str, problem: str) -> None:
        super().__init__(f"{path}: {key}: {problem}" if key else f"{path}: {problem}")


class MissingData(BenchError):
    """The images of a task are not on this machine.

    `looked_for` says in short what each layout wants, `near` what is there instead, '' if nothing is.
    """

    def __init__(self, message: str, looked_for: Sequence[str] = (), near: str = "") -> None:
        super().__init__(message)
        self.looked_for = tuple(looked_for)
        self.near = near


class MissingWeights(BenchError):
    """The weights of a model are not on this machine and cannot be had; `reason` says why in short."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class UnreadableImages(BenchError):
    """Images that cannot be decoded, each named with the reason."""


def a_few(names: Sequence[str]) -> str:
    """Name the first three, and say how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def counted(number: int, thing: str, things: str = "") -> str:
    """Count things: '1 image', '2 images'."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known names a wrong one was probably meant to be, or all of them if few."""
    names = sorted(set(known))
    folded = {n.casefold(): n for n in names}
    near = [folded[n] for n in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    if not names:
        return "none is known"
    return f"known: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}"
