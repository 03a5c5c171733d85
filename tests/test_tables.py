"""Tables that users show others: marks by paired tests, LaTeX, typed frames, and plots from Python."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from records import cost, made
from scipy.stats import binomtest

from mixmim_bench import leaderboard, load_results, plot_pareto
from mixmim_bench.errors import BenchError
from mixmim_bench.report import marks as marking
from mixmim_bench.report.frame import COLUMNS, DTYPES, to_long
from mixmim_bench.report.latex import latex, to_latex
from mixmim_bench.report.leaderboard import leaderboard as board_of
from mixmim_bench.report.marks import BEST, SECOND, TIED, Pairs, marks_of
from mixmim_bench.report.plots import AXES
from mixmim_bench.report.tables import to_frame, to_markdown
from mixmim_bench.report.write import write_report
from mixmim_bench.scoring.statistics import holm, mcnemar_mid_p
from mixmim_bench.specs import digest
from mixmim_bench.suite.records import RunStore

N = 400


def saved(folder, hits_of_models, task="digits", costs=True):
    """A results folder with predictions of models that are right at given places."""
    store = RunStore(folder)
    store.prepare()
    ids = np.array([f"{row:04d}" for row in range(N)])
    y = np.zeros(N, dtype=np.int32)
    for place, (model, hits) in enumerate(hits_of_models.items()):
        best = np.where(hits, 0, 1)[:, None].repeat(5, axis=1).astype(np.int32)
        arrays = {"ids": ids, "y": y, "best": best, "best_scores": np.ones((N, 5), np.float32)}
        store.save(made(model, float(hits.mean()), task=task), arrays)
        if costs:
            for at in ("own", "run"):
                store.save_cost(f"{model}-{at}", cost(model, 2.0**place))
    return store


def right(share, seed):
    return np.random.default_rng(seed).random(N) < share


def test_the_best_is_marked_where_the_test_says_so(tmp_path):
    hits = {"a": right(0.95, 0), "b": right(0.75, 1), "c": right(0.5, 2), "d": right(0.45, 3)}
    store = saved(tmp_path, hits)
    board = board_of(store.records())
    (marks,) = marks_of(board, Pairs(store)).values()
    names = {board.rows[place].model: mark for place, mark in marks.of_row.items()}
    assert names == {"a": BEST, "b": SECOND}
    # as by the tests one by one
    p = [
        mcnemar_mid_p(int((hits["a"] & ~o).sum()), int((o & ~hits["a"]).sum()))
        for o in list(hits.values())[1:]
    ]
    assert max(holm(p)) < 0.05
    text = write_report(store).markdown
    assert f"**{100 * hits['a'].mean():.1f}** (" in text
    assert f"<u>{100 * hits['b'].mean():.1f}</u> (" in text
    assert "Holm-corrected" in text


def test_ties_are_marked_and_nothing_is_bold(tmp_path):
    store = saved(tmp_path, {"a": right(0.80, 0), "b": right(0.79, 1), "c": right(0.4, 2)})
    board = board_of(store.records())
    (marks,) = marks_of(board, Pairs(store)).values()
    assert {board.rows[place].model: mark for place, mark in marks.of_row.items()} == {"a": TIED, "b": TIED}
    text = write_report(store).markdown
    assert text.count("= (") == 2
    assert "**" not in text.split("\n\n")[0]


def test_a_missing_pair_leaves_it_undecided(tmp_path):
    store = saved(tmp_path, {"a": right(0.95, 0), "b": right(0.5, 1)})
    for path in store.runs.glob("*.npz"):
        path.unlink()
    board = board_of(store.records())
    (marks,) = marks_of(board, Pairs(store)).values()
    assert marks.undecided
    assert not marks.of_row
    assert "Not decided, since predictions are missing: digits linear" in write_report(store).markdown


def test_predictions_that_come_back_are_compared(tmp_path):
    store = saved(tmp_path, {"a": right(0.95, 0), "b": right(0.5, 1)})
    path = next(store.runs.glob("*.npz"))
    content = path.read_bytes()
    path.unlink()
    assert "Not decided" in write_report(store).markdown
    path.write_bytes(content)
    assert "Not decided" not in write_report(store).markdown


def test_the_best_is_not_one_that_loses_where_both_were_tested(tmp_path):
    """A mean over more seeds may be higher though the model is lower on the seed that both have."""
    store = saved(tmp_path, {"b": right(0.7, 1)}, costs=False)
    for seed, share in ((0, 0.5), (1, 0.97)):
        hits = right(share, 10 + seed)
        best = np.where(hits, 0, 1)[:, None].repeat(5, axis=1).astype(np.int32)
        ids = np.array([f"{row:04d}" for row in range(N)])
        store.save(
            made("a", float(hits.mean()), seed=seed), {"ids": ids, "y": np.zeros(N, np.int32), "best": best}
        )
    hits = right(0.7, 1)
    best = np.where(hits, 0, 1)[:, None].repeat(5, axis=1).astype(np.int32)
    store.save(made("b", 0.7, seed=0), {"ids": ids, "y": np.zeros(N, np.int32), "best": best})
    for record in store.records():
        if record.model == "b" and record.identity["seed"] is None:
            store.remove(record.run_id)
    (marks,) = marks_of(board_of(store.records()), Pairs(store)).values()
    assert BEST not in marks.of_row.values()


def test_p_values_are_kept_and_used_again(tmp_path, monkeypatch):
    store = saved(tmp_path, {"a": right(0.95, 0), "b": right(0.5, 1), "c": right(0.4, 2)})
    write_report(store)
    kept = json.loads((tmp_path / "pairs.json").read_text())
    assert len(kept["pairs"]) == 3
    first = (tmp_path / "leaderboard.md").read_bytes()

    def never(*_):
        raise AssertionError("tested again")

    monkeypatch.setattr(marking, "Pair", never)
    write_report(store)
    assert (tmp_path / "leaderboard.md").read_bytes() == first
    (tmp_path / "pairs.json").write_text("{")
    with pytest.raises(AssertionError, match="tested again"):
        write_report(store)


def test_latex_shows_every_text_as_it_is():
    assert latex("a_b & 50 % $x$ {y} #1 ~ ^ \\ <z>") == (
        r"a\_b \& 50 \% \$x\$ \{y\} \#1 \textasciitilde{} \textasciicircum{} \textbackslash{} "
        r"\textless{}z\textgreater{}"
    )


def test_the_latex_table_is_grouped_and_marked(tmp_path):
    store = saved(tmp_path, {"a_1": right(0.95, 0), "b": right(0.5, 1), "c": right(0.2, 2)})
    saved(tmp_path, {"a_1": right(0.9, 3)}, task="other")
    board, costs = board_of(store.records()), store.read_costs()
    text = to_latex(board, costs, marks_of(board, Pairs(store)))
    assert (
        r"\multicolumn{1}{c}{digits} & \multicolumn{1}{c}{other} & \multicolumn{3}{c}{mean linear top1}"
        in text
    )
    assert r"{}a\_1 & w & 5.0 & 1.0 & \textbf{" in text
    assert r"\underline{" in text
    assert text.count("--") == 8  # rows without the other task have no averages either
    lines = text.splitlines()
    assert r"\begin{tabular}{llrrrrrrr}" in lines
    cells = [line.count("&") for line in lines if line.endswith(r"\\")]
    assert cells == [6, 8, 8, 8, 8]  # the first one has wide cells


def test_metrics_that_order_models_differently_are_named():
    def scored(model, top1, top5):
        record = made(model, top1, more=["top5"])
        score = {"value": top5, "low": top5 - 0.01, "high": top5, "n": 500}
        return dataclasses.replace(record, scores={**record.scores, "top5": score})

    same = board_of([scored("a", 0.9, 0.95), scored("b", 0.8, 0.93)])
    assert same.disagreements() == []
    other = board_of([scored("a", 0.9, 0.95), scored("b", 0.8, 0.97)])
    assert other.disagreements() == [(("digits", "linear"), "top5")]
    assert "Models are in another order by: digits linear top5." in to_markdown(other, {})
    tied = board_of([scored("a", 0.9, 0.95), scored("b", 0.9, 0.97)])
    assert tied.disagreements() == []


def test_small_costs_and_doubts_are_in_the_latex_table():
    record = made(counts={"skipped_test": 2})
    record.scores["top1"]["guess"] = 0.9
    text = to_latex(board_of([record]), {"a-own": cost("a", 0.038, uncounted=("x",))}, {})
    assert r"& 5.0 & 0.038$^\dagger$ & 90.0$^\ddagger$$^\S$ \\" in text


def test_a_part_of_the_table_is_printed_and_nothing_written(run, tmp_path):
    store = saved(tmp_path, {"a": right(0.9, 0), "b": right(0.5, 1), "c": right(0.2, 2)})
    saved(tmp_path, {"a": right(0.4, 3), "b": right(0.6, 4)}, task="other")
    at = ("--results", tmp_path)

    def rows(*options):
        table = run("report", *options, *at).output.split("\n\n")[0].splitlines()
        return table[0], [line.split("|")[1].strip() for line in table[2:]]

    head, models = rows("-t", "dig*", "--sort", "digits linear")
    assert "digits linear" in head and "other" not in head
    assert models == ["a", "b", "c"]
    assert rows("--sort", "other linear")[1] == ["b", "a", "c"]
    assert sorted(rows("--max-flops", 2)[1]) == ["a", "b"]  # 1, 2 and 4 GMACs
    assert rows("-m", "c")[1] == ["c"]
    assert "No run is finished yet" in run("report", "--max-params", 1, *at).output
    assert (
        "no column 'digit linear'; did you mean digits linear"
        in run("report", "--sort", "digit linear", *at, code=2).output
    )
    assert not (store.folder / "leaderboard.md").exists()


def test_a_part_of_the_table_has_the_versions_and_settings_of_the_whole(run, tmp_path):
    store = RunStore(tmp_path)
    store.prepare()
    later = {"provenance": {"started": "2026-02-01T00:00:00"}}
    score = {"value": 0.5, "low": 0.4, "high": 0.8, "n": N}

    def keep(record, metric_versions=None):
        identity = {**record.identity, "task": {**record.identity["task"]}}
        if metric_versions:
            identity["task"]["metric_versions"] = metric_versions
        record = dataclasses.replace(record, identity=identity, run_id=digest(identity))
        store.save(record, {"ids": np.array(["0"])})

    keep(made("a", 0.8, values={"C": 1}))  # not the usual setting of the column
    keep(made("b", 0.9, values={"C": 2}, **later))
    keep(made("a", 0.8, task="old", suites=("paper",)))  # of an older version
    keep(made("b", 0.9, task="old", version=2, suites=("paper",)))
    scores = {"top1": {**score, "value": 0.7}, "top5": score}  # of an older version of top-5
    keep(made("a", task="more", more=("top5",), scores=scores))
    keep(made("b", task="more", more=("top5",), scores=scores, **later), {"top5": 2})

    def said(*options):
        return run("report", *options, "--results", tmp_path).output

    whole = said("--sort", "digits linear")
    setting = "| a       | w (digits linear: C=1) |"
    assert setting in whole and "1 result of older versions" in whole
    part = said("-m", "a")
    assert setting in part and "old linear" not in part and "1 result of older versions" in part
    assert "more linear" in part and "50.0" not in part  # its version of top-5 is not the newest
    assert "older versions" not in said("-m", "b") and "50.0" in said("-m", "b")
    of_suite = said("-s", "paper")
    assert "old linear" in of_suite and "digits" not in of_suite and "| a " not in of_suite
    assert "No run is finished yet" in said("-m", "a", "-t", "old")


def test_a_part_of_the_table_has_current_intervals(run, tmp_path):
    store = saved(tmp_path, {"a": right(0.9, 0)})
    (record,) = store.records()
    older = {**record.scores["top1"], "low": 0.0, "high": 1.0, "interval": "an older method"}
    store.save(dataclasses.replace(record, scores={"top1": older}), store.arrays(record.run_id))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    hits = int(right(0.9, 0).sum())
    wilson = binomtest(hits, N).proportion_ci(0.95, method="wilson")
    assert (
        f"({100 * wilson.low:.1f} to {100 * wilson.high:.1f})"
        in run("report", "-m", "a", "--results", tmp_path).output
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# -- averages over tasks -----------------------------------------------------------------------------

SCORES = {  # of tasks, whose guesses are GUESSES
    "a": (0.9, 0.6, 0.7),
    "b": (0.8, 0.7, 0.7),
    "c": (0.85, 0.65, None),  # incomplete
    "d": (0.7, 0.5, 0.6),
}
GUESSES = (0.5, 0.1, None)  # the last metric has none


def averaged():
    """Records of four models on three tasks, of which one model lacks one; d has two seeds on the first."""
    records = []
    for model, values in SCORES.items():
        for task, (value, guess) in enumerate(zip(values, GUESSES, strict=True)):
            if value is None:
                continue
            score = {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 500}
            score |= {} if guess is None else {"guess": guess}
            seeds = (0, 1) if (model, task) == ("d", 0) else (0,)
            for seed in seeds:
                moved = {
                    **score,
                    "value": value + 0.1 * (seed - 0.5) * (len(seeds) - 1),
                    "low": 0.0,
                    "high": 1.0,
                }
                records.append(made(model, value, f"task{task}", seed=seed, scores={"top1": moved}))
    return records


def by_hand():
    """Means, means above chance and mean ranks of the complete rows, with pandas."""
    table = pd.DataFrame(SCORES, index=[0, 1, 2], dtype=float).T
    whole = table.dropna()
    guess = pd.Series(GUESSES, dtype=float).fillna(0.0)
    return pd.DataFrame(
        {
            "mean": whole.mean(axis=1),
            "normalised": ((whole - guess) / (1 - guess)).mean(axis=1),
            "rank": whole.rank(ascending=False).mean(axis=1),
        }
    )


def all_tasks(records):
    """A leaderboard whose mean is over all tasks: a row with one task leaves fewer than two in common."""
    return board_of([*records, made("e", 0.5, "task2", seed=0)])


def test_averages_are_those_computed_by_hand():
    board = all_tasks(averaged())
    frame = to_frame(board, {}).set_index("model")
    expected = by_hand()
    assert expected["rank"].to_dict() == pytest.approx({"a": 1.5, "b": 1.5, "d": 3.0})
    assert expected["normalised"]["a"] == pytest.approx((0.8 + 0.5 / 0.9 + 0.7) / 3)
    for name in ("mean", "normalised", "rank"):
        column = frame[f"{name} linear top1"]
        assert column[["a", "b", "d"]].tolist() == pytest.approx(expected[name].tolist())
        assert column[["c", "e"]].isna().all()


def test_incomplete_rows_are_shown_as_such():
    text = to_markdown(all_tasks(averaged()), {})
    table = text.split("Averages over tasks:")[1].split("\n\n")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[1] for row in rows[2:3]] == ["d"] and {row[1] for row in rows[:2]} == {"a", "b"}
    expected = by_hand().loc["d"]
    assert rows[2] == [
        "linear top1: 3 tasks", "d", "w",
        *(f"{100 * expected[name]:.1f}" for name in ("mean", "normalised")), f"{expected['rank']:.2f}",
    ]  # fmt: skip
    assert sorted(row[1:] for row in rows[3:]) == [
        ["c", "w", "incomplete: 2 of 3", "", ""],
        ["e", "w", "incomplete: 1 of 3", "", ""],
    ]
    assert max(map(len, table.splitlines())) < 110  # as wide as a README
    tex = to_latex(all_tasks(averaged()), {}, {})
    line = next(line for line in tex.splitlines() if line.startswith("{}d &"))
    shown = " & ".join([*(f"{100 * expected[name]:.1f}" for name in ("mean", "normalised")), "3.00"])
    assert line.endswith(rf" & {shown} \\")
    assert next(line for line in tex.splitlines() if line.startswith("{}c &")).endswith(r" & -- & -- & -- \\")


def test_averages_in_a_notebook_are_the_same():
    table = leaderboard(to_long(averaged(), {}))
    expected = by_hand()
    for name in ("mean", "normalised", "rank"):
        column = table[name].droplevel(["weights", "precision"])
        assert column[["a", "b", "d"]].tolist() == pytest.approx(expected[name].tolist())
        assert pd.isna(column["c"])


def test_rows_with_other_settings_have_no_rank():
    older = {"values": {"C": 1}, "provenance": {"started": "2025"}}
    records = [made(model, value, f"task{t}") for t in (0, 1) for model, value in (("a", 0.9), ("b", 0.8))]
    records += [made("a", 0.99, f"task{t}", **older) for t in (0, 1)]
    frame = to_frame(board_of(records), {})
    ranks = {(row.model, bool(row.variant)): rank for row, rank in zip(
        frame.itertuples(), frame["rank linear top1"], strict=True
    )}  # fmt: skip
    assert ranks["a", False] == 1.0 and ranks["b", False] == 2.0
    assert pd.isna(ranks["a", True])


def test_a_task_where_guessing_is_always_right_has_no_score_above_chance():
    """All test images are of one class."""
    score = {"value": 1.0, "low": 0.9, "high": 1.0, "n": 50, "guess": 1.0}
    records = [made("a", 0.9, "one"), made("a", 1.0, "two", scores={"top1": score})]
    frame = to_frame(board_of(records), {})
    assert frame["mean linear top1"][0] == pytest.approx(0.95)
    assert pd.isna(frame["normalised linear top1"][0]) and frame["rank linear top1"][0] == 1.0
    table = leaderboard(to_long(records, {}))
    assert pd.isna(table["normalised"].iloc[0]) and table["mean"].iloc[0] == pytest.approx(0.95)


# -- from Python ------------------------------------------------------------------------------------


def test_results_are_typed_and_the_same_in_every_form(tmp_path):
    store = saved(tmp_path, {"a": right(0.9, 0), "b": right(0.5, 1)})
    store.save(made("c", 0.7, seed=3), {"ids": np.array(["a"]), "y": np.zeros(1)})
    write_report(store)
    frame = load_results(tmp_path)
    assert list(frame.columns) == list(COLUMNS) == sorted(DTYPES, key=list(COLUMNS).index)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == DTYPES
    read = pd.read_parquet(tmp_path / "results.parquet")  # pandas 3 reads texts as another type
    pd.testing.assert_frame_equal(read, frame, check_dtype=False)
    read = pd.read_csv(
        tmp_path / "results.csv", keep_default_na=False, na_values=[""], dtype={"seed": "Int64"}
    )
    assert read["value"].tolist() == frame["value"].tolist()
    assert read["seed"].tolist() == frame["seed"].tolist()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    write_report(store)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    with pytest.raises(BenchError, match="no results folder"):
        load_results(tmp_path / "none")


def test_a_leaderboard_in_a_notebook(tmp_path):
    store = saved(tmp_path, {"a": right(0.9, 0), "b": right(0.5, 1)})
    saved(tmp_path, {"a": right(0.6, 2), "b": right(0.7, 3), "c": right(0.8, 4)}, task="other")
    frame = load_results(store.folder)
    table = leaderboard(frame)
    assert [model for model, *_ in table.index] in (["a", "b", "c"], ["b", "a", "c"])
    assert table["mean"].isna().tolist() == [False, False, True]
    assert table.loc[("a", "w", "float32"), ("digits", "linear")] == pytest.approx(right(0.9, 0).mean())
    assert len(leaderboard(frame, complete=True)) == 2
    assert leaderboard(frame, tasks=["other"]).index[0][0] == "c"


def test_a_pareto_plot_in_a_notebook(tmp_path):
    store = saved(tmp_path, {"a": right(0.5, 0), "b": right(0.9, 1), "c": right(0.7, 2)})
    frame = load_results(store.folder)
    axes = plot_pareto(frame, "digits")
    assert {text.get_text() for text in axes.texts} == {"a", "b", "c"}
    front = axes.lines[-1]
    assert list(front.get_xdata()) == [1.0, 2.0]
    assert axes.get_xlabel() == AXES["flops"].title  # as in the plots of the report
    assert plot_pareto(frame, "digits", x="params_m", ax=axes) is axes
    seeds = frame.assign(value=frame["value"] - 0.1, started="2027-01-01", seed=1)
    both = plot_pareto(pd.concat([frame, seeds]), "digits").lines[-1].get_ydata()
    assert list(both) == pytest.approx(
        [100 * value - 5 for value in (right(0.5, 0).mean(), right(0.9, 1).mean())]
    )
    with pytest.raises(BenchError, match="no results of digit linear"):
        plot_pareto(frame, "digit")
    with pytest.raises(BenchError, match="no cost 'flops'"):
        plot_pareto(frame, "digits", x="flops")


def test_a_pareto_plot_has_one_version_of_task_metric_and_protocol():
    """As in `leaderboard`: scores of an older version do not compare with those of a newer one."""
    later = {"provenance": {"started": "2026-02-01T00:00:00"}}
    newer_protocol = {"version": 1, "values": {"version": 2}}
    for newer in ({"version": 2}, newer_protocol):
        records = [made("a", 0.9, **newer), made("b", 0.5, **newer), made("c", 0.99, **later)]
        frame = to_long(records, {f"{each.model}-run": cost(each.model) for each in records})
        assert sorted(row[0] for row in leaderboard(frame).index) == ["a", "b"]
        axes = plot_pareto(frame, "digits")
        assert {text.get_text() for text in axes.texts} == {"a", "b"}
    frame = to_long(records[:2], {"a-run": cost("a"), "b-run": cost("b")})
    rescored = frame.assign(metric_version=frame["metric_version"] + (frame["model"] == "b"))
    assert {text.get_text() for text in plot_pareto(rescored, "digits").texts} == {"b"}


def test_in_a_notebook_too_a_column_has_the_same_images():
    later = {"data": "new", "provenance": {"started": "2026-02-01T00:00:00"}}
    records = [made("a", 0.9, **later), made("b", 0.5, **later), made("c", 0.99, data="old")]
    frame = to_long(records, {f"{each.model}-run": cost(each.model) for each in records})
    assert sorted(row[0] for row in leaderboard(frame).index) == ["a", "b"]
    assert {text.get_text() for text in plot_pareto(frame, "digits").texts} == {"a", "b"}


def test_of_a_calibration_error_the_lowest_is_the_best():
    errors = {"a": 0.10, "b": 0.02, "c": 0.05, "d": 0.20}  # a is the cheapest
    records = []
    for model, value in errors.items():
        record = made(model, 0.5, protocol="own-head")
        error = {"value": value, "low": value - 0.01, "high": value + 0.01, "n": N}
        records.append(dataclasses.replace(record, scores={**record.scores, "ece": error}))
    costs = {f"{model}-run": cost(model, 2.0**place) for place, model in enumerate(errors)}
    frame = to_long(records, costs)
    table = leaderboard(frame, metric="ece")
    assert [model for model, *_ in table.index] == ["b", "c", "a", "d"]
    assert table["rank"].tolist() == pd.Series(errors).rank()[["b", "c", "a", "d"]].tolist() == [1, 2, 3, 4]
    assert table["normalised"].isna().all()
    front = plot_pareto(frame, "digits", "own-head", metric="ece").lines[-1]
    assert front.get_ydata() == pytest.approx([10.0, 2.0])
    speed = plot_pareto(frame.assign(images_per_s=frame["gmacs"]), "digits", "own-head", "images_per_s",
                        metric="ece").lines[-1]  # fmt: skip
    assert speed.get_ydata() == pytest.approx([20.0, 5.0, 2.0])
    assert board_of(records).disagreements() == []
