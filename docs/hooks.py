"""Mounts the Markdown files of the repository beside those of docs/, for MkDocs.

Every page has its path in the repository, so the same relative links work on GitHub and in the site. Images
that pages link to come along. Links to other files lose their target, since the site does not have them.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = (
    *("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"),
    *("DENSE.md", "OWN.md", "READING.md", "TRAINING.md"),
    *("benchmarks/README.md", "results/README.md", "results/shown/published.md", "tasks/README.md"),
    "mixmim_bench/pretrained/README.md",
)
IMAGES = (".png", ".svg")
# code, where nothing is a link; or a link, whose text may contain brackets
LINK = re.compile(
    r"(?P<code>^```.*?^```|`[^`\n]+`(?!\]))|(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<to>[^)\s]+)\)",
    re.DOTALL | re.MULTILINE,
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Give pages of docs/ their path in the repository, and add those outside of it."""
    root = Path(config.config_file_path).parent
    for file in list(files):
        if file.src_dir == config.docs_dir:  # not of the theme
            files.remove(file)
            files.append(
                File(
                    f"{Path(config.docs_dir).name}/{file.src_uri}",
                    str(root),
                    config.site_dir,
                    config.use_directory_urls,
                    dest_uri=file.dest_uri,  # without docs/
                    inclusion=file.inclusion,
                )
            )
    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(root / name)))
    for name in sorted({image for page in PAGES for image in _images(root, page)}):
        files.append(File.generated(config, name, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, *, page: Page, files: Files, **_: Any) -> str:
    """Leave only the text of links to files of the repository that are not in the site."""

    def replaced(link: re.Match[str]) -> str:
        if link["code"] or _is_external(link["to"]):
            return link[0]
        path = _resolved(page.file.src_uri, link["to"])
        return link["text"] if path and files.get_file_from_path(path) is None else link[0]

    return LINK.sub(replaced, markdown)


def _images(root: Path, page: str) -> list[str]:
    """Return the images that a page shows or links to, by their paths in the repository."""
    targets = [link["to"] for link in LINK.finditer((root / page).read_text("utf-8")) if link["to"]]
    paths = [_resolved(page, target) for target in targets if not _is_external(target)]
    return [path for path in paths if path.endswith(IMAGES)]


def _is_external(target: str) -> bool:
    return re.match(r"[a-z]+:", target) is not None


def _resolved(page: str, target: str) -> str:
    """Return the path in the repository that a relative link leads to, '' for an anchor of the same page."""
    path = target.partition("#")[0]
    parts: list[str] = []
    for part in (PurePosixPath(page).parent / path).parts if path else ():
        if part == "..":
            del parts[-1:]
        else:
            parts.append(part)
    return "/".join(parts)
