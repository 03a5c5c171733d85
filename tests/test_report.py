"""Records to tables and plots: rows, columns, means, marks and intervals."""

import dataclasses
import json
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from records import cost, made

from mixmim_bench.report import drawing, plots, style
from mixmim_bench.report.contents import read_contents
from mixmim_bench.report.frame import COLUMNS, to_long
from mixmim_bench.report.intervals import with_current_intervals
from mixmim_bench.report.latex import to_latex
from mixmim_bench.report.leaderboard import leaderboard
from mixmim_bench.report.page import data_of
from mixmim_bench.report.pictures import links, save_picture
from mixmim_bench.report.plots import write_plots
from mixmim_bench.report.runs import describe, row_of
from mixmim_bench.report.tables import to_frame, to_markdown
from mixmim_bench.report.write import write_report
from mixmim_bench.scoring.metrics import METRICS
from mixmim_bench.scoring.predictions import ClassScores
from mixmim_bench.specs import digest
from mixmim_bench.suite.records import RunStore


def test_several_models_make_rows_columns_and_points(tmp_path):
    records = [made("a", 0.9), made("b", 0.8), made("c", 0.95), made("a", 0.7, protocol="finetune")]
    costs = {
        f"{m}-{at}": cost(m, g) for m, g in (("a", 1.0), ("b", 4.0), ("c", 16.0)) for at in ("own", "run")
    }
    board = leaderboard(records)
    frame = to_frame(board, costs)
    assert frame["model"].tolist() == ["c", "a", "b"]  # the best first, by mean rank
    assert frame["digits linear"].tolist() == [0.95, 0.9, 0.8]
    assert frame["digits finetune"].isna().tolist() == [True, False, True]
    assert not [name for name in frame if name.startswith("mean ")]  # of one task there is nothing to average
    paths = write_plots(board, costs, tmp_path)
    svg = paths[1].read_text()
    assert [svg.count(f">{name}<") for name in "abc"] == [2, 1, 1]  # beside each point
    assert len(paths) == 9  # against FLOPs, parameters and speed
    assert svg.count(">digits<") == svg.count(">linear<") + svg.count(">finetune<") == 2


def test_a_score_of_a_hundred_percent_is_drawn_and_shown(tmp_path):
    board = leaderboard([made(value=1.0)])
    assert "100.0 (98.0 to 100.0)" in to_markdown(board, {})
    assert write_plots(board, {"a-run": cost()}, tmp_path)


def test_a_plot_is_drawn_again_only_where_it_changes(tmp_path):
    def files():
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def times():
        return [path.stat().st_mtime_ns for path in write_plots(board, costs, tmp_path)]

    board, costs = leaderboard([made(value=0.9)]), {"a-run": cost()}
    first, drawn = times(), files()
    assert times() == first and files() == drawn
    (tmp_path / "flops_vs_accuracy.svg").write_text("scribbled over")
    assert times() != first and files()["flops_vs_accuracy.svg"] == drawn["flops_vs_accuracy.svg"]
    board = leaderboard([made(value=0.8)])
    assert times() and files()["flops_vs_accuracy.svg"] != drawn["flops_vs_accuracy.svg"]


def test_precisions_have_rows_of_their_own():
    frame = to_frame(leaderboard([made(value=0.9), made(value=0.8, precision="bfloat16")]), {})
    assert frame[["variant", "digits linear"]].to_numpy().tolist() == [["", 0.9], ["bfloat16", 0.8]]


def test_of_two_settings_the_newest_stands_in_the_models_row():
    older = made(value=0.8, values={"epochs": 2})
    newer = made(value=0.9, values={"epochs": 3}, provenance={"started": "2026-02-01T00:00:00"})
    frame = to_frame(leaderboard([newer, older]), {})
    rows = frame[["variant", "digits linear"]].to_numpy().tolist()
    assert rows == [["", 0.9], ["digits linear: epochs=2", 0.8]]


LATER = {"provenance": {"started": "2026-02-01T00:00:00"}}


def rows_of(*records):
    frame = to_frame(leaderboard(records), {})
    return [tuple(row) for row in frame[["model", "variant", "digits linear"]].fillna("").to_numpy().tolist()]


def test_models_judged_on_other_images_do_not_stand_side_by_side():
    found = rows_of(made("a", 0.8), made("b", 0.9, data="1", **LATER))
    assert found == [("b", "", 0.9), ("a", "digits linear: data=0", 0.8)]


def test_models_judged_by_other_hyper_parameters_do_not_stand_side_by_side():
    found = rows_of(made("a", 0.8, values={"C": 1}), made("b", 0.9, values={"C": 2}, **LATER))
    assert found == [("b", "", 0.9), ("a", "digits linear: C=1", 0.8)]


def test_random_and_trained_weights_have_presets_of_their_own():
    random = made("a", 0.5, values={"C": 2}, weights="random init", random_init=True)
    assert [row[1] for row in rows_of(made("a", 0.8, values={"C": 1}, **LATER), random)] == ["", ""]


@pytest.mark.parametrize("newer", [{"sha256": "1"}, {"values": {"added": 1}}])
def test_a_newer_result_is_never_hidden_by_an_older_one(newer):
    found = rows_of(made(value=0.1), made(value=0.99, **newer, **LATER))
    assert sorted(found)[0] == ("a", "", 0.99)
    assert len(found) == 2 and sorted(found)[1][2] == 0.1


def test_the_plot_tells_weights_and_precisions_apart(tmp_path):
    records = [
        made(weights="pretrained", sha256="1"),
        made(weights="tuned", sha256="2", **LATER),
        made(weights="tuned", sha256="2", precision="bfloat16", **LATER),
    ]
    write_plots(leaderboard(records), {"a-run": cost()}, tmp_path)
    svg = (tmp_path / "flops_vs_accuracy.svg").read_text()
    for label in ("a (pretrained)", "a (tuned)", "a (tuned, bfloat16)"):
        assert svg.count(f">{label}<") == 1
    assert write_plots(leaderboard([]), {}, tmp_path) == []
    assert not list(tmp_path.iterdir())  # no plot of results that are gone


def test_test_images_that_were_left_out_are_marked():
    markdown = to_markdown(leaderboard([made(counts={"skipped_test": 3})]), {})
    assert "90.0 (88.0 to 92.0) ‡" in markdown and "skipped: 3 of digits linear" in markdown


def test_older_versions_and_failures_are_left_out():
    failed = made("b", error="broken", scores={})
    board = leaderboard([made(version=2), made("c", version=1), failed])
    assert [row.model for row in board.rows] == ["a"]
    assert board.left_out == 1


def test_older_versions_of_metrics_and_architectures_are_left_out():
    def older(field, record):
        identity = json.loads(json.dumps(record.identity))
        field(identity)
        return dataclasses.replace(record, identity=identity, run_id=digest(identity))

    def newer_metric(identity):
        identity["task"]["metric_versions"] = {"top1": 2}

    def newer_arch(identity):
        identity["arch_version"] = 2

    for field in (newer_metric, newer_arch):
        board = leaderboard([made("a", 0.1), older(field, made("a", 0.9))])
        assert [row.cells["digits", "linear"].value for row in board.rows] == [0.9]
        assert board.left_out == 1
    board = leaderboard([made("b", 0.1), older(newer_arch, made("a", 0.9))])
    assert len(board.rows) == 2 and board.left_out == 0  # each architecture has versions of its own


def of_versions(record, arch=1, metrics=None):
    """Make a record of other versions of its architecture and metrics."""
    identity = json.loads(json.dumps(record.identity))
    if arch > 1:
        identity["arch_version"] = arch
    if metrics:
        identity["task"]["metric_versions"] = metrics
    return dataclasses.replace(record, identity=identity, run_id=digest(identity))


def test_a_result_that_is_left_out_decides_nothing_of_its_column():
    """An old architecture's result of a newer protocol must not empty the column of the others."""
    stale = dataclasses.replace(made("a", 0.1, "two"))
    identity = {**stale.identity, "protocol": {"name": "linear", "version": 2}}
    stale = dataclasses.replace(stale, identity=identity, run_id=digest(identity))
    board = leaderboard([of_versions(made("a", 0.9, "one"), arch=2), stale, made("b", 0.8, "two")])
    assert board.columns == [("one", "linear"), ("two", "linear")]
    assert {row.model: dict(row.cells.items()).keys() for row in board.rows} == {
        "a": {("one", "linear")},
        "b": {("two", "linear")},
    }


def test_an_older_version_of_a_further_metric_is_blank_and_its_row_stays():
    scores = {name: {"value": 0.8, "low": 0.7, "high": 0.9, "n": 500} for name in ("top1", "roc_auc")}
    old = made("a", more=("roc_auc",), scores=scores)
    new = of_versions(made("b", more=("roc_auc",), scores=scores, **LATER), metrics={"roc_auc": 2})
    board = leaderboard([old, new])
    assert [row.settings for row in board.rows] == ["", ""]
    frame = to_frame(board, {}).set_index("model")
    assert frame["digits linear"].tolist() == [0.8, 0.8]
    assert pd.isna(frame["digits linear roc_auc"]["a"]) and frame["digits linear roc_auc"]["b"] == 0.8


@pytest.mark.parametrize("seeds", [[None], [0, 1]])
def test_a_model_scored_again_by_a_newer_further_metric_has_one_cell(seeds):
    """Neither version is a setting, so that both results belong to the same cell: the newer one fills it."""
    scores = {name: {"value": 0.8, "low": 0.7, "high": 0.9, "n": 500} for name in ("top1", "roc_auc")}
    better = {**scores, "top1": {**scores["top1"], "value": 0.85}}
    old = [made("a", more=("roc_auc",), scores=scores, seed=seed) for seed in seeds]
    again = made("a", more=("roc_auc",), scores=better, seed=seeds[0], **LATER)
    new = of_versions(again, metrics={"roc_auc": 2})
    for records in ([*old, new], [new, *old]):
        board = leaderboard(records)
        (row,) = board.rows
        assert row.settings == "" and row.cells["digits", "linear"].records == (new,)
        assert row.cells["digits", "linear"].value == 0.85 and board.left_out == len(old)
    assert f"{len(old)} result" in to_markdown(board, {})


# -- means and further metrics -----------------------------------------------------------------------


def means_of(*records):
    frame = to_frame(leaderboard(records), {}).set_index("model")
    return {
        name: frame[name].where(frame[name].notna(), None).round(6).to_dict()
        for name in frame
        if name.startswith("mean ")
    }


def in_suite(model, task, value=0.9, suites=("paper",), **changes):
    return made(model, value, task, suites=suites, **changes)


def test_a_mean_is_of_one_metric_and_never_of_variants():
    found = means_of(
        in_suite("a", "one", 0.9),
        in_suite("a", "two", 0.7),
        in_suite("a", "two@5shot", 0.1),
        in_suite("a", "three", 0.2, metric="mean_ap"),
        in_suite("a", "four", 0.4, metric="mean_ap"),
    )
    assert found == {"mean paper linear top1": {"a": 0.8}, "mean paper linear mean_ap": {"a": 0.3}}


def test_a_mean_is_over_a_suite():
    found = means_of(
        in_suite("a", "one", 0.9, ("paper", "extended")),
        in_suite("a", "two", 0.7),
        in_suite("a", "three", 0.5, ("extended",)),
        in_suite("a", "mine", 0.1, ()),
        in_suite("a", "yours", 0.3, ()),
    )
    assert found == {
        "mean linear top1": {"a": 0.2},
        "mean extended linear top1": {"a": 0.7},
        "mean paper linear top1": {"a": 0.8},
    }


def test_a_mean_is_over_the_tasks_that_all_rows_have_and_says_which():
    records = [
        *(in_suite("a", task, value) for task, value in (("one", 0.9), ("two", 0.7), ("three", 0.2))),
        *(in_suite("b", task, value) for task, value in (("one", 0.8), ("two", 0.6))),
        in_suite("c", "one", 0.1, protocol="knn"),  # has nothing of the mean
    ]
    found = means_of(*records)["mean paper linear top1"]
    assert found["a"] == 0.8 and found["b"] == 0.7 and pd.isna(found["c"])
    markdown = to_markdown(leaderboard(records), {})
    note = "mean paper linear top1: over one, two; not all rows have three."
    assert note in markdown and f"% {note}" in to_latex(leaderboard(records), {}, {})
    # with fewer than two in common it is over all, and blank where one is missing
    found = means_of(*records, in_suite("d", "three"))["mean paper linear top1"]
    assert found["a"] == 0.6 and pd.isna(found["b"]) and pd.isna(found["d"])


def test_a_mean_over_tasks_that_differ_in_cost_has_no_place_in_a_plot(tmp_path):
    def of_size(model, task, size):
        return in_suite(model, task, costs={"own": f"{model}-own", "run": f"{model}-{size}"})

    sizes = {"a": (224, 384), "b": (224, 224)}
    records = [
        of_size(model, task, size)
        for model, of_tasks in sizes.items()
        for task, size in zip(("one", "two"), of_tasks, strict=True)
    ]
    costs = {
        f"{model}-{size}": cost(model, gmacs, images_per_s=speed)
        for model in sizes
        for size, gmacs, speed in ((224, 4.0, 90.0), (384, 12.0, 30.0))
    }
    board = leaderboard(records)

    def drawn(axis):
        panels = plots.panels(board, costs, axis)
        return {panel.title[0]: {point.label: point.x for point in panel.points} for panel in panels}

    flops = drawn("flops")
    assert flops["one"] == {"a": 4.0, "b": 4.0} and flops["two"] == {"a": 12.0, "b": 4.0}
    assert flops["mean of paper"] == {"b": 4.0}
    assert drawn("speed")["mean of paper"] == {"b": 90.0}
    assert drawn("params")["mean of paper"] == {"a": 5.0, "b": 5.0}  # the same at any size
    store = RunStore(tmp_path)
    store.prepare()
    for record in records:
        store.save(record, {"ids": np.array(["0"])})
    for key, measured in costs.items():
        store.save_cost(key, measured)
    data = data_of(read_contents(store))
    mean = [column["kind"] for column in data["columns"]].index("mean")
    shown = {row["model"]: row["cells"][mean]["x"] for row in data["rows"]}
    assert shown == {"a": {"params": 5.0}, "b": {"flops": 4.0, "params": 5.0, "speed": 90.0}}
    del costs["b-224"]  # what is not measured for one task is not that of the mean
    assert "mean of paper" not in drawn("flops")


def test_records_from_before_suites_were_kept_join_those_after():
    found = means_of(
        *(in_suite("a", task, value, ()) for task, value in (("one", 0.9), ("two", 0.7))),
        *(in_suite("b", task, 0.5, **LATER) for task in ("one", "two")),
    )
    assert found == {"mean paper linear top1": {"a": 0.8, "b": 0.5}}


def test_every_metric_of_a_task_is_in_both_tables():
    record = made(
        metric="top1",
        more=("top5",),
        scores={
            "top1": {"value": 0.8, "low": 0.78, "high": 0.82, "n": 500},
            "top5": {"value": 0.95, "low": 0.93, "high": 0.97, "n": 500},
        },
    )
    frame = to_frame(leaderboard([record]), {})
    assert frame["digits linear top5"][0] == 0.95 and frame["digits linear top5 low"][0] == 0.93
    markdown = to_markdown(leaderboard([record]), {})
    assert "Further metrics" in markdown and "95.0 (93.0 to 97.0)" in markdown


def test_a_score_that_is_a_guess_is_marked():
    guess = {"value": 0.3, "low": 0.28, "high": 0.32, "n": 500, "guess": 0.29}
    markdown = to_markdown(leaderboard([made(scores={"top1": guess})]), {})
    assert "30.0 (28.0 to 32.0) §" in markdown and "§ not significantly better than" in markdown
    both = {"top1": {**guess, "guess": 0.2}, "top5": guess}
    markdown = to_markdown(leaderboard([made(more=("top5",), scores=both)]), {})
    assert markdown.count("32.0) §") == 1 and "§ not significantly better than" in markdown
    better = made(scores={"top1": {**guess, "guess": 0.2}})
    assert "§" not in to_markdown(leaderboard([better]), {})


# -- intervals of older methods ----------------------------------------------------------------------


def with_predictions(store, metric, method, **changes):
    """Keep a result whose interval an older method made."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 200)
    predicted = ClassScores(
        np.arange(200).astype(str), y, np.eye(4)[y] + rng.normal(size=(200, 4)).astype(np.float32)
    )
    today = predicted.scores_by([metric])[metric]
    old = {**today, "low": 0.0, "high": 1.0, "interval": method, "guess": 0.25}
    record = made(metric=metric, scores={metric: old}, **changes)
    if METRICS[metric].version > 1:
        identity = {**record.identity, "task": {**record.identity["task"]}}
        identity["task"]["metric_versions"] = {metric: METRICS[metric].version}
        record = dataclasses.replace(record, identity=identity, run_id=digest(identity))
    store.save(record, predicted.kept([metric]))
    return today


@pytest.mark.parametrize("metric", ["mean_per_class", "roc_auc", "top1"])
def test_intervals_are_made_again_from_the_predictions(tmp_path, metric):
    store = RunStore(tmp_path)
    store.prepare()
    today = with_predictions(store, metric, "an older method")
    write_report(store)
    (record,) = store.records()
    found = record.scores[metric]
    assert found["interval"] == today["interval"] and found["guess"] == 0.25
    for key in ("value", "low", "high"):
        assert found[key] == pytest.approx(today[key], abs=1e-6)
    written = next(store.runs.glob("*.json"))
    stamp = written.stat().st_mtime_ns
    write_report(store)
    assert written.stat().st_mtime_ns == stamp  # once is enough


def test_intervals_are_not_saved_over_a_run_in_progress_or_a_newer_result(tmp_path):
    store = RunStore(tmp_path)
    store.prepare()
    today = with_predictions(store, "top1", "an older method")
    (read,) = store.records()
    with RunStore(tmp_path).claim(read.run_id) as claimed:  # by the process that does the run again
        assert claimed
        shown = with_current_intervals(store, read)
        assert shown.scores["top1"]["interval"] == today["interval"]
        assert store.records() == [read]
    newer = dataclasses.replace(read, notes=("done again",))
    store.save(newer, store.arrays(read.run_id))
    assert with_current_intervals(store, read).notes == ()
    assert store.records() == [newer]
    with_current_intervals(store, newer)
    (found,) = store.records()
    assert found.notes == newer.notes and found.scores["top1"]["interval"] == today["interval"]


def test_an_interval_whose_predictions_are_gone_stays(tmp_path):
    store = RunStore(tmp_path)
    store.prepare()
    with_predictions(store, "mean_per_class", "an older method")
    next(store.runs.glob("*.npz")).unlink()
    write_report(store)
    assert store.records()[0].scores["mean_per_class"]["interval"] == "an older method"


def test_what_was_not_counted_is_marked():
    costs = {"a-own": cost(uncounted=("aten::baddbmm",))}
    markdown = to_markdown(leaderboard([made()]), costs)
    assert "†" in markdown and "aten::baddbmm" in markdown
    assert to_frame(leaderboard([made()]), costs)["uncounted"][0] == "aten::baddbmm"


HOSTILE = "a | b\n<script>alert(1)</script> $\\frac{ *x* `y` [z](http://a) _w_ __v__ \x1b[31m"


def test_names_cannot_break_tables_and_plots(tmp_path):
    record = made(task=HOSTILE, weights=HOSTILE, task_title=HOSTILE)
    board = leaderboard([record])
    text = to_markdown(board, {"a-own": cost(device=HOSTILE)})
    head, rule, row, *_ = text.splitlines()
    unescaped = re.compile(r"(?<!\\)\|")
    assert len(unescaped.findall(head)) == len(unescaped.findall(rule)) == len(unescaped.findall(row))
    assert "<script>" not in text and "\x1b" not in text and "\\$" in text
    svg = write_plots(board, {"a-run": cost()}, tmp_path)[1]
    ElementTree.fromstring(svg.read_text())


def test_texts_of_records_stay_text_in_markdown_links_and_on_the_terminal(tmp_path):
    """Bundles may come from anybody: no text of a record is markup, or a command to the terminal."""
    hostile = "](http://a) <b> *x*\n\x1b[31m\x9b0m \u2028"
    store = RunStore(tmp_path)
    store.prepare()
    record = made(
        task=hostile, weights=hostile, task_title=hostile, protocol_title=hostile, notes=(hostile,),
        provenance={"started": "2026-01-01T00:00:00", "device": hostile}, chosen={hostile: hostile},
    )  # fmt: skip
    failed = made("b", error=hostile, scores={})
    save_picture(store.picture_of(record.run_id), Image.new("RGB", (8, 8)))
    linked = links(store, [record]).strip().splitlines()[-1]
    assert linked.endswith(f"](pictures/{record.run_id}.png)") and linked.count("](") == 1 + 2
    assert linked.count("\\](") == 2 and "<b>" not in linked and "\x1b" not in linked
    noted = to_markdown(leaderboard([made()]), {"a-own": cost(uncounted=("<b>*x*\x1b",))})
    assert r"&lt;b&gt;\*x\*" in noted and "<b>" not in noted and "\x1b" not in noted
    for each in (record, failed):
        unsafe = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
        row = row_of(each)
        assert not any(unsafe.search(str(text)) for text in row.values())
        lines = describe(store, each).split("\n")
        assert not any(unsafe.search(line) for line in lines)
        assert any("](http://a) <b> *x*" in line for line in lines)
        without = dataclasses.replace(each, **{name: "x" for name in ("weights", "task_title")})
        assert len(lines) == len(describe(store, without).split("\n"))
    assert [line[:14] for line in lines if line.startswith(" ")]  # tables stay aligned


def test_rows_are_sorted_best_first_and_other_settings_follow_their_model():
    found = rows_of(
        made("a", 0.7),
        made("b", 0.9, values={"C": 1}),
        made("b", 0.8, **LATER),
        made("b", 0.95, values={"C": 1}, seed=3),
        made("c", 0.75),
    )
    assert found[0][:2] == ("b", "")
    assert [row[0] for row in found if not row[1]] == ["b", "c", "a"]
    assert found[1][0] == "b" and found[1][1]


@pytest.mark.parametrize("count", [1, 3, 40])
def test_nothing_is_printed_over_something_else(count):
    """Titles, ticks, labels and keys of a figure with many long names."""
    models = {f"model {i}": (0.3 * 1.17**i, 0.4 + 0.01 * ((i * 7) % 40)) for i in range(count)}
    tasks = ["iNaturalist 2018 (24,426 images)", "Places365 (365 scenes)", "ImageNet-1K", "Food-101"]
    records = [
        made(
            model,
            value,
            task=task,
            protocol=protocol,
            protocol_title=f"{protocol} of features",
            metric=metric,
        )
        for model, (_, value) in models.items()
        for task, metric in zip(tasks, ("top1", "top1", "top1", "mean_per_class"), strict=True)
        for protocol in ("linear", "finetune")
    ]
    costs = {f"{model}-run": cost(model, gmacs) for model, (gmacs, _) in models.items()}
    panels = plots.panels(leaderboard(records), costs)
    figure = drawing.draw(panels)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.canvas.draw()
    texts = [figure._supxlabel, figure._supylabel]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    assert bool(figure.legends) == (count == 40)
    drawn = [axis for axis in figure.axes if axis.get_visible()]
    for axis in drawn:
        texts += [axis.title, axis.yaxis.label, *axis.get_xticklabels(), *axis.get_yticklabels()]
    assert [axis.get_ylabel() for axis in drawn] == [panel.metric for panel in panels]
    assert not any(axis.get_ylabel() for axis in drawing.draw(panels[:1]).axes)  # it is that of the figure
    boxes = [text.get_window_extent(renderer).shrunk(0.99, 0.99) for text in texts if text.get_text()]
    assert len(boxes) > 50
    for i, box in enumerate(boxes):
        assert not [other for other in boxes[i + 1 :] if box.overlaps(other)]
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    for axis in drawn:
        labels = [text.get_window_extent(renderer).shrunk(0.9, 0.9) for text in axis.texts]
        assert labels
        assert not [1 for i, box in enumerate(labels) for other in labels[i + 1 :] if box.overlaps(other)]


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.5), (0.14, 260), (7, 36), (0.001, 1e6), (90, 110)])
def test_ticks_are_few(low, high):
    ticks = style.log_ticks(low, high)
    assert len(ticks) <= style.TICKS and all(low <= tick <= high for tick in ticks)


def test_settings_follow_their_model_where_models_tie():
    scores = (("a", "x", 0.9), ("b", "x", 0.8), ("a", "y", 0.8), ("b", "y", 0.9))
    records = [made(model, value, task=task) for model, task, value in scores]
    older = {"values": {"C": 1}, "provenance": {"started": "2025"}}
    records += [made(model, 0.5, task="x", **older) for model in ("a", "b")]
    rows = [(row.model, bool(row.settings)) for row in leaderboard(records).rows]
    assert rows == [("a", False), ("a", True), ("b", False), ("b", True)]


def test_all_results_are_in_one_long_table():
    records = [
        made("a", 0.9, more=("top5",), scores={"top1": {"value": 0.9}, "top5": {"value": 0.99}}),
        made("b", 0.8, seed=3),
        made("c", 0.7, error="it failed"),
    ]
    frame = to_long(records, {"a-run": cost("a", 4.0)})
    assert list(frame.columns) == list(COLUMNS)
    assert frame[["model", "metric", "value", "ranked"]].values.tolist() == [
        ["a", "top1", 0.9, True],
        ["a", "top5", 0.99, False],
        ["b", "top1", 0.8, True],
    ]
    assert frame["gmacs"].tolist()[:2] == [4.0, 4.0] and frame["gmacs"].isna().tolist() == [
        False,
        False,
        True,
    ]
    assert frame["run_id"].nunique() == 2 and frame["seed"].tolist()[2] == 3
    assert to_long([], {}).empty
