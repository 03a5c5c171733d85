"""Large plots, drawn in processes of their own, and the formats that a figure is saved in."""

import io
import sys

import pytest
from matplotlib import rc_context
from records import cost, made

from mixmim_bench.report import background
from mixmim_bench.report.background import Background
from mixmim_bench.report.drawing import draw
from mixmim_bench.report.leaderboard import leaderboard
from mixmim_bench.report.plots import panels, write_plots
from mixmim_bench.report.style import STYLE, save


@pytest.fixture
def board():
    names = [f"model{place:02d}" for place in range(12)]
    scores = [0.5 + 0.03 * (place * 5 % 12) for place in range(12)]
    records = [
        made(name, score, task=task)
        for name, score in zip(names, scores, strict=True)
        for task in ("digits", "dtd")
    ]
    costs = {f"{name}-run": cost(name, 1.5**place) for place, name in enumerate(names)}
    return leaderboard(records), costs


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}


def test_a_process_of_its_own_draws_the_same_bytes(tmp_path, board, monkeypatch):
    write_plots(*board, tmp_path / "here")
    monkeypatch.setattr(background, "LARGE", 1)
    monkeypatch.setattr(background.Job, "draw", lambda _: pytest.fail("drawn in this process"))
    with Background() as drawing:
        write_plots(*board, tmp_path / "there", background=drawing)
        drawing.finish()
    assert files_in(tmp_path / "there") == files_in(tmp_path / "here") != {}
    times = [path.stat().st_mtime_ns for path in write_plots(*board, tmp_path / "there")]
    assert len(times) == 9  # nothing is drawn again


def test_a_process_that_fails_changes_nothing(tmp_path, board, monkeypatch):
    write_plots(*board, tmp_path / "here")
    monkeypatch.setattr(background, "LARGE", 1)
    monkeypatch.setattr(sys, "executable", "false")
    with Background() as drawing:
        write_plots(*board, tmp_path / "there", background=drawing)
        drawing.finish()
    assert files_in(tmp_path / "there") == files_in(tmp_path / "here")


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_files_are_those_of_matplotlib(tmp_path, board, kind):
    figure = draw(panels(*board))
    save(figure, [tmp_path / f"plot.{kind}"])
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}
    expected = io.BytesIO()
    with rc_context(STYLE):
        draw(panels(*board)).savefig(expected, format=kind, dpi=200, metadata=dates[kind])
    assert (tmp_path / f"plot.{kind}").read_bytes() == expected.getvalue()
