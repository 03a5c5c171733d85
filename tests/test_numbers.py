"""The numbers, tables and figures of the docs are those of the records in results/shown."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import generate  # noqa: E402
from shown import Records  # noqa: E402

from mixmim_bench.errors import BenchError  # noqa: E402

RUN = "1934c431a6efef58"  # linear probe of mixmim-tiny on digits: 98.8 (97.4 to 99.4), 100.0 on train
OTHER = "9a16d902cd2db4e4"  # with random weights: 93.2
PAGE = "README.md"


def test_the_docs_are_as_the_records_have_them():
    assert not [str(each) for each in generate.check()]


WRITTEN = f"""# Results

A probe reaches <!-- score: {RUN} top1 -->98.8<!-- end --> %
(above <!-- score: {RUN} top1 low -->97.4<!-- end -->),
and on train <!-- score: {RUN} top1 train -->100.0<!-- end --> %, which is better by
at most <!-- difference: {RUN} {OTHER} high -->+8.0<!-- end --> points,
or by about <!-- difference: {RUN} {OTHER} -->+5.6<!-- end --> points.

<!-- generated: leaderboard results/shown -->
<!-- end -->

`<!-- score: nothing -->` in code is no comment:

```
<!-- score: RUN_ID METRIC -->98.8<!-- end -->
```
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return Records(ROOT, tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def text(records):
    """A page as the records have it."""
    return generate.page(WRITTEN, PAGE, records)[0]


@pytest.fixture
def copy(tmp_path, text):
    """A small repository: the records, and a page."""
    shutil.copytree(ROOT / "results" / "shown", tmp_path / "results" / "shown")
    (tmp_path / PAGE).write_text(text, "utf-8", newline="\n")
    return tmp_path


def change(path, old, new):
    content = path.read_text("utf-8")
    assert old in content
    path.write_text(content.replace(old, new, 1), "utf-8", newline="\n")


def line_of(content, part):
    return next(number for number, line in enumerate(content.splitlines(), 1) if part in line)


def problems(root):
    return [str(each) for each in generate.check(root)]


def test_generating_again_changes_nothing(copy):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert generate.check(copy) == [] and generate.generate(copy) == []
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    record = json.loads((copy / "results" / "shown" / "runs" / f"{RUN}.json").read_text())
    assert f"{100 * record['scores']['top1']['value']:.1f}" in (copy / PAGE).read_text()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("-->98.8<", "-->98.9<", f"score: {RUN} top1: shown is '98.9', expected '98.8'"),
        ("-->97.4<", "-->97.5<", f"score: {RUN} top1 low: shown is '97.5', expected '97.4'"),
        ("-->100.0<", "-->99.0<", f"score: {RUN} top1 train: shown is '99.0', expected '100.0'"),
        ("-->+5.6<", "-->+6.5<", f"difference: {RUN} {OTHER}: shown is '+6.5', expected '+5.6'"),
        (
            "98.8= (97.4 to 99.4)",
            "**98.9** (97.4 to 99.4)",
            "generated: leaderboard results/shown: shown is '**98.9** (97.4 to 99.4)', expected "
            "'98.8= (97.4 to 99.4)'",
        ),
    ],
)
def test_a_changed_number_is_found_and_corrected(text, records, old, new, said):
    assert old in text
    changed = text.replace(old, new, 1)
    corrected, (found,) = generate.page(changed, PAGE, records)
    assert str(found) == f"{PAGE}:{line_of(changed, new)}: {said}; run python docs/generate.py"
    assert corrected == text and found.stale


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (f"{RUN} top1 -->", f"{RUN[:-1]}0 top1 -->", f"no run in .* '{RUN[:-1]}0'; did you mean {RUN}"),
        (f"{RUN} top1 -->", f"{RUN} top5 -->", f"no score of run {RUN} 'top5'; did you mean top1"),
        ("top1 low", "top1 lower", "no part of a score 'lower'; did you mean low"),
        (f"{RUN} {OTHER} -->", f"{RUN} -->", "'.*' has too few or too many words"),
        (f"{RUN} {OTHER} -->", f"{RUN} 57bb3d791b613e84 -->", "is of digits top1, and .* is of mnist5k top1"),
        ("<!-- score:", "<!-- scores:", "no kind of comment 'scores'; did you mean score"),
        ("leaderboard results/shown", "leaderboard results", "no results folder 'results'; did you mean"),
        ("generated: leaderboard", "generated: leaders", "no generated block 'leaders'; did you mean"),
        ("98.8<!-- end -->", "98.8", "without <!-- end -->"),
        ("A probe", "A probe<!-- end -->", "<!-- end --> without a comment before it"),
        ("A probe reaches <!-- score", "<!-- score", "begins a line"),
    ],
)
def test_comments_that_cannot_be_filled_in_are_errors(text, records, old, new, said):
    assert old in text
    changed = text.replace(old, new, 1)
    found = [each for each in generate.page(changed, PAGE, records)[1] if not each.stale]
    assert any(re.search(said, each.text) and each.line == line_of(changed, new) for each in found), found


def test_nothing_is_written_where_a_comment_is_wrong(copy):
    change(copy / PAGE, f"{RUN} top1 -->98.8", f"{RUN[:-1]}0 top1 -->98.8")
    change(copy / PAGE, "-->97.4<", "-->97.5<")
    before = (copy / PAGE).read_bytes()
    with pytest.raises(BenchError, match=rf"README.md:3: no run in .* '{RUN[:-1]}0'; did you mean {RUN}"):
        generate.generate(copy)
    assert (copy / PAGE).read_bytes() == before


def test_a_changed_record_is_found(copy, text):
    path = copy / "results" / "shown" / "runs" / f"{RUN}.json"
    change(path, '"value": 0.988', '"value": 0.985')
    found = problems(copy)
    name = path.relative_to(copy).as_posix()
    assert f"{name}: top1 is 0.98500, and its predictions give 0.98800" in found
    line = line_of(text, f"{RUN} top1 -->")
    again = "run python docs/generate.py"
    assert f"{PAGE}:{line}: score: {RUN} top1: shown is '98.8', expected '98.5'; {again}" in found
    table = copy / "results" / "shown" / "leaderboard.md"
    assert any(
        each.startswith(f"results/shown/leaderboard.md:{line_of(table.read_text(), '98.8=')}: ")
        for each in found
    )
    assert (
        f"results/shown/plots/flops_vs_accuracy: shows other values than the records have; {again}" in found
    )
    assert any(
        "is not the record of this run in results/shown/runs" in each for each in found
    )  # the card has it
    with pytest.raises(BenchError, match="its predictions give"):
        generate.generate(copy)


def test_a_changed_bound_or_invalid_record_is_found(copy):
    runs = copy / "results" / "shown" / "runs"
    low = json.loads((runs / f"{OTHER}.json").read_text())["scores"]["top1"]["low"]
    change(runs / f"{OTHER}.json", f'"low": {low}', f'"low": {low - 0.01}')
    assert any(each.startswith(f"results/shown/runs/{OTHER}.json: top1 low is") for each in problems(copy))
    change(runs / f"{OTHER}.json", '"mixmim-tiny"', '"mixmim-tin"')
    found = [each for each in problems(copy) if each.startswith(f"results/shown/runs/{OTHER}.json: ")]
    assert found and str(copy) not in found[0]


def test_missing_predictions_are_found(copy):
    (copy / "results" / "shown" / "runs" / f"{RUN}.npz").unlink()
    path = f"results/shown/runs/{RUN}"
    assert any(
        each.startswith(f"{path}.json: the predictions {path}.npz cannot be read") for each in problems(copy)
    )


def test_files_and_figures_that_were_edited_are_found(copy):
    shown = copy / "results" / "shown"
    change(shown / "leaderboard.csv", "0.988,", "0.98,")
    change(shown / "plots" / "flops_vs_accuracy.svg", "<svg", "<svg ")
    found = problems(copy)
    assert len(found) == 2, found
    assert re.match(r"results/shown/leaderboard\.csv:\d: .* shown is '0\.98', expected '0\.988'", found[0])
    assert found[1].startswith("results/shown/plots/flops_vs_accuracy.svg: is not the file that was drawn")


@pytest.mark.parametrize(
    ("shown", "expected", "differing"),
    [
        ("| a | b |\n|:---|:---|", "| a  | b |\n|:----|:---|", []),
        ("| a | 9.9 |", "| a | 10.1 |", [7]),
        ("| a | - |", "| a |  |", [7]),
        ("| a | --- |", "| a | - |", [7]),
        ("| a |", "| a | b |", [7]),
        ("| a |\n| b |", "| a |", [8]),
        ("text", "text\n\nmore", [9]),
    ],
)
def test_tables_are_compared_cell_by_cell(shown, expected, differing):
    assert [each.line for each in generate.different(shown, expected, PAGE, 7, "table")] == differing


def test_unmarked_percentages_of_mixmim_tiny_are_found():
    def lines(text):
        return [each.line for each in generate.unmarked(text, "page.md")]

    assert lines("# A\n\n`mixmim-tiny` reaches\n89.5 % here.\n") == [4]
    assert lines("mixmim-tiny reaches 89.5% and 90.1 %.") == [1, 1]
    assert not lines("mixmim-tiny has 5.0 M parameters, and 95 % intervals.")
    assert not lines("mixmim-tiny.\n\nAnother model reaches 89.5 %.")
    assert not lines(f"mixmim-tiny: <!-- score: {RUN} top1 -->98.8<!-- end --> %")
    assert not lines("mixmim-tiny: <!-- measured: mixmim-bench run -->98.8<!-- end --> %")
    assert not lines("```\nmixmim-tiny: 98.8 %\n```\n")


def test_differences_are_those_of_the_command(copy, run, records):
    """As `compare --json` on the same folder has them."""
    rows = json.loads(
        run(
            *("compare", "mixmim-tiny/tiny_10ep", "mixmim-tiny/random init"),
            *("--results", copy / "results" / "shown", "--json"),
        ).stdout
    )
    (row,) = [each for each in rows if (each["task"], each["protocol"]) == ("digits", "linear")]
    for part, name in (("value", "difference"), ("low", "low"), ("high", "high")):
        assert records.difference(RUN, OTHER, part) == f"{100 * row[name]:+.1f}"


def test_the_command_says_what_differs(copy, monkeypatch):
    monkeypatch.setattr(generate.check, "__defaults__", (copy,))
    monkeypatch.setattr(generate.generate, "__defaults__", (copy,))
    call = CliRunner().invoke
    assert call(generate.main, ["--check"]).exit_code == 0
    change(copy / PAGE, "-->98.8<", "-->98.9<")
    failed = call(generate.main, ["--check"])
    assert failed.exit_code == 1 and "expected '98.8'" in failed.output
    assert "Written: README.md" in call(generate.main, []).output
    assert "nothing" in call(generate.main, []).output
