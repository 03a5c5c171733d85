"""Generate every score table, figure and score number of the docs from the records in results/shown.

    python docs/generate.py            # after a change of the records, or of how they are shown
    python docs/generate.py --check    # changes nothing; lists what differs, and exits with status 1

Markdown pages hold what is generated between comments, which rendered pages do not show:

    <!-- generated: leaderboard results/shown -->          the tables of a results folder
    <!-- generated: weights results/shown/card MODEL -->   scores of trained and of random weights
    <!-- generated: controls results/shown/card -->        the controls of `run --controls`
    <!-- score: RUN_ID METRIC -->98.8<!-- end -->          a score; METRIC low, METRIC high, METRIC train
    <!-- difference: RUN_ID RUN_ID -->+5.6<!-- end -->     of a paired test; also low, high
    <!-- measured: COMMAND -->89.5<!-- end -->             not of a record here, and left as it is

All end with `<!-- end -->`. Comments of single numbers must not begin a line, where they would end the
paragraph.
"""

import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import click
from shown import SCORE_PLOT, SHOWN, Problem, Records

from mixmim_bench.errors import BenchError
from mixmim_bench.report.redraw import draw_if_changed
from mixmim_bench.report.text import cut
from mixmim_bench.specs import digest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("*.md", "docs/**/*.md", "*/README.md", "mixmim_bench/*/README.md")
DRAWN = f"{SHOWN}/figures.json"  # digests of what the figures show, and of their files
AGAIN = "python docs/generate.py"
MOST = 4  # differences of a file or block that are listed

FENCE = r"^( *)```.*?^\1```"
CODE = re.compile(rf"{FENCE}|`[^`\n]+`", re.DOTALL | re.MULTILINE)
OPENED = re.compile(r"<!-- (?P<kind>\w+):")
MARK = re.compile(r"<!-- (?P<kind>\w+): (?P<names>[^>]+?) -->(?P<shown>.*?)<!-- end -->", re.DOTALL)
END = "<!-- end -->"
RULE = re.compile(r":?-{3,}:?")  # below the head of a table
UNMARKED = re.compile(r"\d+\.\d(?!\d)(?= ?%)")


# -- pages ----------------------------------------------------------------------------------------------


def pages(root: Path) -> list[Path]:
    """List the Markdown pages that people write."""
    return sorted({path for pattern in PAGES for path in root.glob(pattern)})


def page(text: str, name: str, records: Records) -> tuple[str, list[Problem]]:
    """Return a page as the records have it, and what is wrong with the given one."""
    masked = CODE.sub(lambda code: re.sub(r"[^\n]", "x", code[0]), text)
    parts, problems, at = [], [], 0

    def line(place: int) -> int:
        return text.count("\n", 0, place) + 1

    marks = list(MARK.finditer(masked))
    for mark in marks:
        where = line(mark.start())
        start, end = mark.span("shown")
        shown = expected = text[start:end]
        try:
            if "<!--" in shown:
                raise BenchError(f"{text[mark.start() : start]} without {END}")
            if mark["kind"] != "measured":
                expected = records.expected(mark["kind"], mark["names"].split())
            if mark["kind"] != "generated" and not text[: mark.start()].rpartition("\n")[2].strip():
                raise BenchError(f"begins a line, which would end the paragraph: {mark[0]}; move it")
        except BenchError as error:
            problems.append(Problem(name, where, str(error)))
        first = line(start + len(shown) - len(shown.lstrip()))
        label = text[mark.start() : start].strip("<!-> ")
        problems += different(shown.strip(), expected.strip(), name, first, label)
        parts += [text[at:start], expected]
        at = end
    problems += _unmatched(masked, marks, name, line)
    return "".join([*parts, text[at:]]), sorted(problems, key=lambda each: each.line)


def _unmatched(
    masked: str, marks: list[re.Match[str]], name: str, line: Callable[[int], int]
) -> Iterator[Problem]:
    """List comments without an end, and ends without a beginning."""
    spans = [mark.span() for mark in marks]
    for found in [*OPENED.finditer(masked), *re.finditer(END, masked)]:
        if not any(start <= found.start() < end for start, end in spans):
            said = "without a comment before it" if found[0] == END else f"without {END}"
            yield Problem(name, line(found.start()), f"{found[0]} {said}")


def different(shown: str, expected: str, path: str, first: int, label: str) -> list[Problem]:
    """Compare texts line by line, and rows of tables cell by cell; first: the number of the first line."""
    problems = []
    separator = "," if path.endswith(".csv") else "|"
    for number, lines in enumerate(zip_longest(shown.splitlines(), expected.splitlines()), first):
        ours, theirs = ((line or "").split(separator) for line in lines)
        pairs = list(zip(ours, theirs, strict=True)) if len(ours) == len(theirs) else [lines]
        for pair in pairs:
            if not _same(*pair):
                a, b = ("nothing" if each is None else repr(cut(each.strip(), 120)) for each in pair)
                problems.append(
                    Problem(path, number, f"{label}: shown is {a}, expected {b}; run {AGAIN}", True)
                )
    if len(problems) > MOST:
        rest = Problem(path, 0, f"{label}: and {len(problems) - MOST} more differences", True)
        return [*problems[:MOST], rest]
    return problems


def _same(a: str | None, b: str | None) -> bool:
    """Return whether two cells are the same, but for padding and the last digits of a CSV file."""
    if a is None or b is None:
        return a == b
    a, b = a.strip(), b.strip()
    if a == b or (RULE.fullmatch(a) and RULE.fullmatch(b)):
        return True
    try:
        return abs(float(a) - float(b)) < 1e-9
    except ValueError:
        return False


def unmarked(text: str, name: str) -> Iterator[Problem]:
    """List percentages with a decimal, without a comment, in paragraphs of text on mixmim-tiny."""

    def blank(code: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", code[0])

    text = MARK.sub(blank, re.sub(FENCE, blank, text, flags=re.DOTALL | re.MULTILINE))
    for paragraph in re.finditer(r"(?:^(?![ \t]*\|).*\S.*\n?)+", text, re.MULTILINE):
        if "mixmim-tiny" in paragraph[0]:
            for found in UNMARKED.finditer(paragraph[0]):
                line = text.count("\n", 0, paragraph.start() + found.start()) + 1
                yield Problem(
                    name,
                    line,
                    f"{found[0]} % of mixmim-tiny has no comment that says where it is from: "
                    f"<!-- score: RUN_ID METRIC -->, or <!-- measured: COMMAND -->, and {END}",
                )


# -- figures --------------------------------------------------------------------------------------------


def _values(drawn: list[Any]) -> str:
    """Return a digest of what a figure shows, to six digits."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [rounded(each) for each in value]
        return f"{value:.6g}" if isinstance(value, float) else value

    return digest(rounded([asdict(panel) for panel in drawn]), 32)


def _sha256(path: Path) -> str:
    if not path.exists():
        return "missing"
    content = path.read_bytes()
    if path.suffix == ".svg":  # which Git may check out with other line ends
        content = content.replace(b"\r\n", b"\n")
    return hashlib.sha256(content).hexdigest()


def check_figures(root: Path, records: Records) -> Iterator[Problem]:
    """List figures that show other values than the records have, and files that were changed."""
    notes = json.loads((root / DRAWN).read_text("utf-8")) if (root / DRAWN).exists() else {}
    for name, (drawn, _) in records.figures().items():
        note = notes.get(name, {"values": "none", "files": {}})
        if note["values"] != _values(drawn):
            yield Problem(name, 0, f"shows other values than the records have; run {AGAIN}", True)
        for file, expected in note["files"].items():
            if _sha256(root / file) != expected:
                yield Problem(file, 0, f"is not the file that was drawn from the records; run {AGAIN}", True)


def draw_figures(root: Path, records: Records) -> list[str]:
    """Draw the figures that `check_figures` lists; returns the files."""
    wrong = {re.sub(r"\.\w+$", "", each.path) for each in check_figures(root, records)}
    path = root / DRAWN
    notes = json.loads(path.read_text("utf-8")) if path.exists() else {}
    written = []
    for name, (drawn, caption) in records.figures().items():
        if name not in wrong:
            continue
        kinds = ("png", "svg") if name == SCORE_PLOT else ("png",)
        draw_if_changed(drawn, records.scratch / "figures", Path(name).name, caption)
        for kind in kinds:
            (root / name).parent.mkdir(exist_ok=True)
            shutil.copy(records.scratch / "figures" / f"{Path(name).name}.{kind}", root / f"{name}.{kind}")
            written.append(f"{name}.{kind}")
        files = {f"{name}.{kind}": _sha256(root / f"{name}.{kind}") for kind in kinds}
        notes[name] = {"values": _values(drawn), "files": files}
    if written:
        path.write_text(f"{json.dumps(notes, indent=1, sort_keys=True)}\n", "utf-8")
    return written


# -- the command ----------------------------------------------------------------------------------------


def check(root: Path = ROOT) -> list[Problem]:
    """List what differs from the records, or is wrong with them; changes nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        records = Records(root, Path(scratch))
        problems = list(records.problems())
        for name, expected in records.files().items():
            path = root / name
            shown = path.read_text("utf-8") if path.exists() else ""
            if shown != expected:
                problems += different(shown, expected, name, 1, "generated file")
        for path in pages(root):
            name, text = path.relative_to(root).as_posix(), path.read_text("utf-8")
            problems += page(text, name, records)[1]
            if not name.startswith("benchmarks/"):  # each number of which has its command
                problems += unmarked(text, name)
        return [*problems, *check_figures(root, records)]


def generate(root: Path = ROOT) -> list[str]:
    """Write what differs; returns the paths. Raises BenchError where comments or records are invalid."""
    with tempfile.TemporaryDirectory() as scratch:
        records = Records(root, Path(scratch))
        new = records.files()
        invalid = list(records.problems())
        for path in pages(root):
            name, text = path.relative_to(root).as_posix(), path.read_text("utf-8")
            new[name], problems = page(text, name, records)
            invalid += [each for each in problems if not each.stale]
        if invalid:
            raise BenchError("\n".join(map(str, invalid)))
        written = []
        for name, text in new.items():
            path = root / name
            if not path.exists() or path.read_text("utf-8") != text:
                path.write_text(text, "utf-8", newline="\n")
                written.append(name)
        return written + draw_figures(root, records)


@click.command(help=__doc__.partition("\n\n")[0])
@click.option("--check", "only_check", is_flag=True, help="Change nothing; list what differs.")
def main(only_check: bool) -> None:
    """Generate, or check."""
    if only_check:
        problems = check()
        for each in problems:
            click.echo(each, err=True)
        sys.exit(bool(problems))
    try:
        written = generate()
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Written: {', '.join(written) or 'nothing; all is as the records have it'}")


if __name__ == "__main__":
    main()
