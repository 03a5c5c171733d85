"""Tables in Markdown and CSV, with names escaped: titles and checkpoint names may hold any character."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_SPECIAL = re.compile(r"[\\`*\[\]|$~]|(?<![^\W_])_|_(?![^\W_])")


def printable(text: str) -> str:
    """Replace line ends and control characters by spaces; indentation stays."""
    return _CONTROL.sub(" ", text)


def one_line(text: str) -> str:
    """Replace line ends and control characters by spaces, without any at the ends."""
    return printable(text).strip()


def cut(name: str, width: int = 34) -> str:
    """Shorten a name for a label: what is left out is its middle, since names often begin in the same way."""
    if len(name) <= width:
        return name
    tail = width * 2 // 5
    return f"{name[: width - 1 - tail]}…{name[-tail:]}"


def amount(value: float | None) -> str:
    """Format a cost: with two digits below 1, blank if it was not measured."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def markdown(text: str) -> str:
    """Escape a text so that Markdown, in a cell of a table too, shows it as it is."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\g<0>", text)


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Write rows of Markdown as a table; blank where a row lacks a column of another."""
    import pandas as pd

    return str(pd.DataFrame(rows).fillna("").to_markdown(index=False, disable_numparse=True))


def safe_csv(frame: "pd.DataFrame") -> str:
    """Write a table as CSV in which no text is a formula for a spreadsheet: those get an apostrophe."""
    return str(frame.map(_no_formula).rename(columns=_no_formula).to_csv(index=False))


def _no_formula(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULAS) else cell


_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
