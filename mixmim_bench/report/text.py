"""Escape names in Markdown and CSV: titles and checkpoint names may hold any character."""

import re

import pandas as pd

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_SPECIAL = re.compile(r"[\\`*\[\]|$~]|(?<![^\W_])_|_(?![^\W_])")


def one_line(text: str) -> str:
    """Replace line ends and control characters by spaces."""
    return _CONTROL.sub(" ", text).strip()


def markdown(text: str) -> str:
    """Escape a text so that Markdown, in a cell of a table too, shows it as it is."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\g<0>", text)


def safe_csv(frame: pd.DataFrame) -> str:
    """Write a table as CSV in which no text is a formula for a spreadsheet: those get an apostrophe."""
    safe = frame.map(lambda cell: f"'{cell}" if isinstance(cell, str) and cell[:1] in _FORMULAS else cell)
    return str(safe.to_csv(index=False))


_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
