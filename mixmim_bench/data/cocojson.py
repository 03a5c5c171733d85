"""JSON files in COCO's format: lists of images, annotations and categories."""

import json
from pathlib import Path
from typing import Any

from mixmim_bench.data.layout import LayoutError


def read_coco(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read a file with the lists `images`, `annotations` and `categories`; raises LayoutError."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{path} is not JSON or truncated ({error}); download it again") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise LayoutError(f"{path} has no list {key!r}")
    return content
