"""Extract ids and classes from image names."""

import re

from mixmim_bench.data.layout import LayoutError


class Naming:
    """Extracts ids and classes from image names by regular expressions.

    Args:
        id_pattern: matches the id; by default, the id is the file name up to its first dot.
        class_pattern: matches the class; by default, names contain no class.
    """

    def __init__(self, id_pattern: str = "", class_pattern: str = "") -> None:
        self.id_pattern = _compiled(id_pattern, "id_pattern")
        self.class_pattern = _compiled(class_pattern, "class_pattern")

    def id_of(self, *names: str) -> str:
        """Return the id from the first name that matches; raises LayoutError if none does."""
        if self.id_pattern is None:
            return next(name for name in names if name).rpartition("/")[2].partition(".")[0]
        for name in names:
            if match := self.id_pattern.search(name):
                return match[0]
        raise LayoutError(
            f"no image id in {' or '.join(filter(None, names)) or 'an image without a name'}: no match for "
            f"{self.id_pattern.pattern}",
            "data.options.id_pattern",
        )

    def class_of(self, *names: str) -> str:
        """Return the class from the first name that matches, '' if none does."""
        if self.class_pattern is not None:
            for name in names:
                if match := self.class_pattern.search(name):
                    return match[0]
        return ""


def _compiled(pattern: str, option: str) -> "re.Pattern[str] | None":
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        raise LayoutError(
            f"{pattern!r} is not a regular expression: {error}", f"data.options.{option}"
        ) from error
