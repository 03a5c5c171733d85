"""The documentation: links and anchors lead somewhere, and commands in it exist."""

import re
import shlex
import tomllib
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import click
import pytest

from mixmim_bench.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(
        ROOT / folder / "README.md"
        for folder in ("benchmarks", "mixmim_bench/pretrained", "results", "tasks")
    ),
]
FENCE = re.compile(r"^( *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^\1```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")


@cache
def prose(path):
    """A page without its code."""
    return re.sub(r"`[^`\n]+`(?!\])", "", FENCE.sub("", path.read_text("utf-8")))


@cache
def anchors(path):
    """The anchors that GitHub gives the headings of a page."""
    found = Counter()
    for heading in re.findall(r"^#+ +(.+?) *$", FENCE.sub("", path.read_text("utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        found[re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")] += 1
    return {f"{slug}-{i}" if i else slug for slug, count in found.items() for i in range(count)}


def in_pages(of_page):
    """One test case for each page that has what is checked."""
    cases = [(path, found) for path in PAGES if (found := of_page(path))]
    return pytest.mark.parametrize(
        ("path", "found"), cases, ids=[path.relative_to(ROOT).as_posix() for path, _ in cases]
    )


def links(path):
    return [to for to in LINK.findall(prose(path)) if not re.match(r"[a-z]+:", to)]


def commands(path):
    """The calls of mixmim-bench in bash blocks, as lists of words."""
    calls = []
    for block in FENCE.finditer(path.read_text("utf-8")):
        if block["language"] != "bash":
            continue
        for line in block["body"].replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|", line):
                words = shlex.split(part.rstrip(" &"), comments=True)
                if "run_suite.py" in words:
                    calls.append(["run", *words[words.index("run_suite.py") + 1 :]])
                elif words[:1] == ["mixmim-bench"]:
                    calls.append([word for word in words[1:] if word not in (">", "<")])
    return calls


@in_pages(links)
def test_links_lead_somewhere(path, found):
    for link in found:
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{link}: there is no such file"
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        if anchor:
            assert anchor in anchors(target), f"{link}: there is no such heading; {sorted(anchors(target))}"


@in_pages(commands)
def test_commands_and_options_exist(path, found):
    del path
    for words in found:
        check(words)


def check(words):
    """Look up the command, options and choices of a call; values such as paths need not exist."""
    command, rest = main, list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        assert name in command.commands, f"mixmim-bench {shlex.join(words)}: no command {name!r}"
        command = command.commands[name]
    options = {opt: each for each in command.params for opt in [*each.opts, *each.secondary_opts]}
    context = click.Context(command)
    options |= dict.fromkeys(["-h", "--help"]) | {
        each: None for each in command.get_help_option_names(context)
    }
    names = [word.partition("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)]
    for name in names:
        assert name in options, f"mixmim-bench {shlex.join(words)}: no option {name}"
    for name, value in pairwise(rest):
        kind = getattr(options.get(name), "type", None)
        if isinstance(kind, click.Choice):
            assert value in kind.choices, f"mixmim-bench {shlex.join(words)}: {name} {value}"


def test_unknown_commands_and_options_are_found():
    check(["run", "-m", "resnet50", "--dry-run"])
    check(["results", "prune", "--limited"])
    for wrong in (["walk"], ["results", "walk"], ["run", "--wet-run"], ["run", "--precision", "float3"]):
        with pytest.raises(AssertionError):
            check(wrong)


def test_toml_and_python_blocks_parse():
    for path in PAGES:
        for block in FENCE.finditer(path.read_text("utf-8")):
            if block["language"] == "toml":
                tomllib.loads(block["body"])
            elif block["language"] == "python":
                compile(block["body"], str(path), "exec")


def test_every_page_is_in_the_navigation():
    """mkdocs.yml is read as text, since MkDocs is not needed to run the tests."""
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    hook = (ROOT / "docs" / "hooks.py").read_text("utf-8")
    for path in PAGES:
        name = path.relative_to(ROOT).as_posix()
        assert f": {name}\n" in text, f"{name} is not in nav of mkdocs.yml"
        assert name.startswith("docs/") or f'"{name}"' in hook, f"{name} is not in PAGES of docs/hooks.py"
