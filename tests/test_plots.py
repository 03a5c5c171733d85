"""Few-shot curves, plots of a single run and of two models: what is drawn is what was recorded."""

import dataclasses
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.text import Text
from records import made
from sklearn.metrics import average_precision_score, confusion_matrix, jaccard_score, recall_score

from mixmim_bench import (
    compare_models,
    load_results,
    plot_comparison,
    plot_confusion,
    plot_fewshot,
    plot_per_class,
)
from mixmim_bench.cli.results import PLOTS
from mixmim_bench.errors import BenchError
from mixmim_bench.report import curves, fewshot, runplots
from mixmim_bench.report.compare import compare
from mixmim_bench.report.curves import spread
from mixmim_bench.report.panels import Matrix
from mixmim_bench.report.redraw import figure_of
from mixmim_bench.report.style import PANELS_IN_A_ROW
from mixmim_bench.report.text import cut
from mixmim_bench.report.write import write_report
from mixmim_bench.scoring.classes import scores_of_classes
from mixmim_bench.scoring.intervals import wilson
from mixmim_bench.scoring.predictions import ClassScores, DrawScores, PixelCounts
from mixmim_bench.scoring.segmentation import count_pixels
from mixmim_bench.specs import digest
from mixmim_bench.suite.records import RunStore

HOSTILE = "a | b <script>alert(1)</script> $\\frac{ *x* \x1b[31m & λ"
N, K = 300, 6


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path / "results")
    store.prepare()
    return store


def predicted(seed=0, K=K, share=0.7, n=N):
    """Labels of n images and scores of K classes, of which a share is right."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % K
    best = np.where(rng.random(n) < share, y, rng.integers(0, K, n))
    scores = np.eye(K)[best] + 0.01 * rng.random((n, K))
    return ClassScores(np.array([f"image {place:04d}" for place in range(n)]), y, scores)


def keep(store, predictions=None, arrays=None, names=None, **changes):
    """Keep a result with its predictions, and the names of its classes."""
    predictions = predicted() if predictions is None else predictions
    record = made(value=float((predictions.scores.argmax(1) == predictions.y).mean()), **changes)
    head = {} if names is None else {"head_classes": np.array(names)}
    store.save(record, {**predictions.kept(["top1"]), **(arrays or {}), **head})
    return record


def few_shot(model, task="digits", at=0.5, heads=("ridge", "logistic"), **changes):
    """A record of `fewshot` whose scores follow from `at`."""
    values = {
        (head, shots): at + 0.01 * shots + 0.002 * i for i, head in enumerate(heads) for shots in (1, 5, 10)
    }
    scores = {
        f"top1 {head} {shots}-shot": {"value": v, "low": v - 0.03, "high": v + 0.02, "std": 0.01}
        for (head, shots), v in values.items()
    }
    main = {"top1": {"value": at + 0.1, "low": at, "high": at + 0.2, "n": 500, "draws": 5, "std": 0.01}}
    changes = {"seed": 0, **changes}
    return made(model, at + 0.1, task=task, protocol="fewshot", scores={**main, **scores}, **changes)


def line_of(axes, place=0):
    return axes.lines[place].get_xdata().tolist(), axes.lines[place].get_ydata().tolist()


# -- few-shot curves ----------------------------------------------------------------------------------


def test_few_shot_curves_are_the_recorded_scores(store):
    for model, at in (("a", 0.3), ("b", 0.5)):
        store.save(few_shot(model, at=at), {})
        for shots, value in ((5, at), (20, at + 0.2)):
            store.save(made(model, value, task=f"digits@{shots}shot"), {})
    frame = load_results(store.folder)
    axes = plot_fewshot(frame, "digits")
    x, y = line_of(axes)  # the best first
    assert x == [1, 5, 10] and y == pytest.approx([51, 55, 60])
    assert {text.get_text() for text in axes.texts} == {"a", "b"}
    assert axes.get_xscale() == "log"
    ((low, high), *_) = [segment[:, 1] for segment in axes.collections[0].get_segments()]
    assert (low, high) == pytest.approx((48, 53))
    x, y = line_of(plot_fewshot(frame, "digits", "linear"))
    assert x == [5, 20] and y == pytest.approx([50, 70])
    assert line_of(plot_fewshot(frame, "digits", "logistic"))[1] == pytest.approx([51.2, 55.2, 60.2])
    assert plot_fewshot(frame, "digits", ax=axes) is axes
    with pytest.raises(BenchError, match=r"no few-shot results of digit; did you mean digits\?"):
        plot_fewshot(frame, "digit")
    with pytest.raises(BenchError, match="no head 'ridg'; did you mean ridge"):
        plot_fewshot(frame, "digits", "ridg")


def test_over_seeds_curves_are_mean_and_deviation(store):
    for seed, at in enumerate((0.2, 0.3, 0.7)):
        store.save(few_shot("a", at=at, seed=seed), {})
    (panel,) = fewshot.few_shot_panels(load_results(store.folder), "ridge")
    (curve,) = panel.curves
    values = 100 * (np.array([0.2, 0.3, 0.7]) + 0.01)
    assert curve.y[0] == pytest.approx(values.mean())
    assert curve.high[0] - curve.y[0] == pytest.approx(values.std(ddof=1))


def test_the_report_draws_few_shot_curves_where_there_are_some(store):
    def files():
        return {path.name: path.read_bytes() for path in (store.folder / "plots").glob("*fewshot*")}

    record = few_shot("a")
    store.save(record, {})
    store.save(few_shot("a", "other"), {})
    store.save(made("a", 0.9, task="digits@5shot"), {})
    assert {path.name for path in write_report(store).paths} >= {
        f"fewshot_{head}.{kind}" for head in fewshot.HEADS for kind in ("png", "svg", "pdf")
    }
    drawn = files()
    stamps = {path: path.stat().st_mtime_ns for path in (store.folder / "plots").iterdir()}
    write_report(store)
    assert {path: path.stat().st_mtime_ns for path in (store.folder / "plots").iterdir()} == stamps
    for path in (store.folder / "plots").glob("fewshot*"):
        path.unlink()
    write_report(store)
    again = files()
    assert {name for name in drawn if drawn[name] != again[name]} <= {n for n in drawn if n.endswith(".json")}
    for each in store.records():
        store.remove(each.run_id)
    write_report(store)
    assert not files()


def test_curves_have_the_usual_settings_only(store):
    newer = {"provenance": {"started": "2026-02-01T00:00:00"}}
    store.save(few_shot("a", at=0.5, **newer), {})
    store.save(few_shot("b", at=0.2, data="of other images"), {})
    write_report(store)
    svg = (store.folder / "plots" / "fewshot_ridge.svg").read_text()
    assert svg.count(">a<") == 1 and ">b<" not in svg


@pytest.mark.parametrize("count", [1, 6, 40])
@pytest.mark.parametrize("tasks", [1, 6])
def test_curves_are_labelled_without_collisions(store, count, tasks):
    for model in range(count):
        for task in range(tasks):
            name = f"vit_base_patch16_224.of some weights {model}"
            store.save(few_shot(name, f"a task with a long name {task}", at=0.3 + 0.001 * model), {})
    panels = fewshot.few_shot_panels(load_results(store.folder), "ridge")
    figure = figure_of(panels, "Grey: others.")
    figure.draw_without_rendering()
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert len(shown) == tasks
    coloured = {curve.label for panel in panels for curve in panel.curves if not curve.pale}
    assert len(coloured) == min(count, fewshot.COLOURED)
    texts = [axis.title for axis in shown] + [figure._supxlabel, figure._supylabel]
    texts += [text for axis in shown for text in axis.get_xticklabels()]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    texts += [text for axis in shown for text in axis.texts]
    assert bool(figure.legends) == (tasks > 1)
    names = [text.get_text() for text in texts if text.get_text().startswith("vit_base")]
    assert len(names) == len(coloured)
    boxes = [Text.get_window_extent(text).shrunk(0.98, 0.8) for text in texts if text.get_text()]
    for place, box in enumerate(boxes):
        assert not [other for other in boxes[place + 1 :] if box.overlaps(other)]
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1
    assert figure.get_figwidth() <= 2.7 * PANELS_IN_A_ROW


def test_labels_move_apart_as_little_as_possible():
    assert spread([1.0, 5.0], 2.0, 0.0, 9.0) == [1.0, 5.0]
    assert spread([4.0, 4.0, 4.0], 1.0, 0.0, 9.0) == [3.0, 4.0, 5.0]
    assert spread([0.0, 0.1], 2.0, 0.0, 9.0) == [0.0, 2.0]
    assert spread([8.9, 9.0], 2.0, 0.0, 9.0) == [7.0, 9.0]


# -- a single run -------------------------------------------------------------------------------------


def choice_arrays():
    return {
        "fit_C": np.logspace(-3, 1, 5),
        "fit_val_top1": np.array([0.5, 0.7, 0.8, 0.8]),  # the sweep ended early
        "fit_val_log_loss": np.array([1.5, 1.1, 0.6, 0.7]),
    }


def test_the_choice_of_c_is_drawn_and_marked(store):
    record = keep(store, arrays=choice_arrays(), chosen={"C": 0.1, "val_top1": 0.8, "layer": "own"})
    figure = figure_of(runplots.figures_of(store, record, "choice")["choice"])
    accuracy, loss = figure.axes
    assert line_of(accuracy) == ([1e-3, 1e-2, 1e-1, 1.0], pytest.approx([50, 70, 80, 80]))
    assert line_of(loss)[1] == [1.5, 1.1, 0.6, 0.7]
    marked = [line for line in accuracy.lines if line.get_markersize() == 10]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in marked] == [(0.1, pytest.approx(80))]
    assert "chosen: layer own, C 0.1" in figure._suptitle.get_text()


def test_layers_and_learning_rates_that_were_tried_are_drawn(store):
    tried = {"ridge_val_top1 blocks.1": 0.6, "ridge_val_top1 blocks.2": 0.7, "layer": "blocks.2", "C": 0.1}
    record = keep(store, arrays=choice_arrays(), chosen=tried)
    layers, accuracy, _ = runplots.figures_of(store, record, "choice")["choice"]
    assert layers.curves[0].y == pytest.approx((60, 70)) and layers.curves[0].chosen == 1
    assert layers.ticks == ["blocks.1", "blocks.2"] and accuracy.curves[0].chosen == 2
    rates = {
        "fit_base_lr": np.array([1e-2, 1e-3, 1e-2, 1e-3]),
        "fit_epochs": np.array([5, 5, 9, 9]),
        "fit_val_top1": np.array([0.5, 0.6, -np.inf, 0.7]),  # one diverged
    }
    record = keep(store, arrays=rates, chosen={"base_lr": 1e-3, "epochs": 9}, protocol="finetune")
    (panel,) = runplots.figures_of(store, record, "choice")["choice"]
    assert [(c.label, c.x, c.chosen) for c in panel.curves] == [
        ("epochs 5", (1e-3, 1e-2), -1),
        ("epochs 9", (1e-3,), 0),
    ]
    assert panel.curves[0].y == pytest.approx((60, 50))


def test_losses_are_those_of_the_logs_else_of_the_epochs(store):
    record = keep(store, arrays={"fit_train_loss": np.array([2.0, 1.0])}, protocol="finetune")
    (panel,) = runplots.figures_of(store, record, "training")["training"]
    assert (panel.curves[0].x, panel.curves[0].y) == ((1.0, 2.0), (2.0, 1.0))
    folder = store.logs_of(record.run_id)
    folder.mkdir(parents=True)
    rows = [
        "0,0.5,2.5,0.1,9",
        "1,1.0,1.5,0.05,9",
        "2,1.5,1.0,nan,9",
        "3,2.0,0.",
    ]  # one not finite, one not whole
    (folder / "fine-tuning.csv").write_text("step,epoch,loss,lr,images_per_s\n" + "\n".join(rows))
    loss, rate = runplots.figures_of(store, record, "training")["training"]
    assert (loss.curves[0].x, loss.curves[0].y, rate.curves[0].y) == ((0.5, 1.0), (2.5, 1.5), (0.1, 0.05))
    figure = figure_of([loss, rate])
    assert line_of(figure.axes[0]) == ([0.5, 1.0], [2.5, 1.5])


def test_scores_of_classes_are_those_of_scikit_learn(store):
    predictions = predicted()
    names = [f"kind {place}" for place in range(K)]
    record = keep(store, predictions, names=names)
    axes = plot_per_class(record.run_id[:6], store.folder)
    best = predictions.scores.argmax(1)
    recalls = 100 * recall_score(predictions.y, best, average=None)
    order = sorted(range(K), key=lambda place: (-recalls[place], place))
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == [f"kind {place} ({N // K})" for place in order]
    dots = {-line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1}
    assert [dots[place] for place in range(K)] == pytest.approx([recalls[place] for place in order])
    low, high = axes.collections[0].get_segments()[0][:, 0]
    right = int((best == order[0])[predictions.y == order[0]].sum())
    assert (low, high) == pytest.approx(tuple(100 * each for each in wilson(right, N // K)))


def test_scores_of_classes_of_every_kind_of_task():
    rng = np.random.default_rng(0)
    y = (rng.random((80, 4)) < 0.4).astype(np.int8)
    y[:, 3] = 0  # of a class without positives nothing is known
    scores = (y + rng.normal(size=y.shape)).astype(np.float32)
    arrays = ClassScores(np.arange(80).astype(str), y, scores).kept(["mean_ap"])
    found = scores_of_classes("multilabel", "mean_ap", arrays)
    theirs = [average_precision_score(y[:, place], scores[:, place]) for place in range(3)]
    assert [each.value for each in found] == pytest.approx(theirs)
    assert [each.n for each in found] == y[:, :3].sum(0).tolist()
    labels, taken = rng.integers(0, 3, (2, 12, 50))
    counts = np.stack([count_pixels(a, b, 3) for a, b in zip(labels, taken, strict=True)])
    found = scores_of_classes("segmentation", "miou", PixelCounts(np.arange(12).astype(str), counts).kept([]))
    theirs = jaccard_score(labels.ravel(), taken.ravel(), average=None)
    assert [each.value for each in found] == pytest.approx(theirs)
    for each in found:
        assert each.low < each.value < each.high


def test_scores_of_classes_of_detections_are_their_average_precisions():
    """Two classes: of one every object is found first, of the other half of them."""
    bits = np.uint16(2**10 - 1)
    labels = np.array([[0, 1], [0, 1]], dtype=np.int16)
    hits = np.zeros((2, 2, 4), dtype=np.uint16)
    hits[:, 0], hits[0, 1] = bits, bits
    arrays = {
        "ids": np.array(["a", "b"]), "images_of_classes": np.array([5, 5]), "labels": labels,
        "scores": np.array([[0.9, 0.8], [0.7, 0.6]], dtype=np.float32), "box_hits": hits,
        "box_skips": np.zeros_like(hits), "objects": np.ones((2, 2, 4), dtype=np.uint16),
    }  # fmt: skip
    found = scores_of_classes("detection", "ap_box", arrays)
    assert [each.value for each in found] == pytest.approx([1.0, 51 / 101])
    assert [each.n for each in found] == [2, 2]


def test_the_confusion_matrix_is_that_of_scikit_learn(store):
    predictions = predicted()
    record = keep(store, predictions)
    axes = plot_confusion(record.run_id, store.folder)
    shares = confusion_matrix(predictions.y, predictions.scores.argmax(1), normalize="true")
    assert np.asarray(axes.images[0].get_array()) == pytest.approx(100 * shares)
    assert [text.get_text() for text in axes.get_yticklabels()] == [f"class {place}" for place in range(K)]


def test_draws_are_averaged(store):
    draws = [predicted(seed) for seed in range(3)]
    kept = DrawScores(draws[0].ids, draws[0].y, [each.scores for each in draws]).kept(["top1"])
    record = made(protocol="fewshot", seed=0)
    store.save(record, kept)
    figure = runplots.figures_of(store, record, "confusion")["confusion"]
    y = draws[0].y
    theirs = np.mean([confusion_matrix(y, each.scores.argmax(1), normalize="true") for each in draws], 0)
    assert np.array(figure.shares) == pytest.approx(theirs)
    (first, *_) = scores_of_classes("classification", "top1", kept)
    assert first.value == pytest.approx(theirs[0, 0])


def test_of_many_classes_some_are_shown(store):
    predictions = predicted(K=70, n=1400)
    record = keep(store, predictions)
    found = runplots.figures_of(store, record)
    best = predictions.scores.argmax(1)
    dots = found["per-class"].dots
    recalls = np.sort(100 * recall_score(predictions.y, best, average=None))[::-1]
    assert [dot.value for dot in dots] == pytest.approx([*recalls[:30], *recalls[-30:]])
    assert found["per-class"].gap == 30 and found["per-class"].gap_label == "… 10 more …"
    counts = confusion_matrix(predictions.y, best)
    np.fill_diagonal(counts, 0)
    bars = found["confusion"].dots
    assert [dot.value for dot in bars] == np.sort(counts, axis=None)[::-1][:25].tolist()
    true, taken = (int(part.split("class ")[1].split(" ")[0]) for part in bars[0].label.split("→"))
    assert counts[true, taken] == bars[0].value
    widths = [bar.get_width() for bar in figure_of(found["confusion"]).axes[0].patches]
    assert widths == [dot.value for dot in bars]


def test_classes_without_images_are_blank():
    matrix = Matrix(title=["a"], names=["x", "y"], shares=[(0.5, 0.5), None])
    array = figure_of(matrix).axes[0].images[0].get_array()
    assert array.mask.tolist() == [[False, False], [True, True]]


def test_names_of_classes_are_those_of_a_probe_on_the_same_images(store):
    names = [f"kind {place}" for place in range(K)]
    other = keep(store, protocol="knn")
    assert runplots.class_names(store, other, K) == [f"class {place}" for place in range(K)]
    keep(store, names=names)
    assert runplots.class_names(store, other, K) == names
    elsewhere = made(protocol="knn", data="of other images")
    assert runplots.class_names(store, elsewhere, K)[0] == "class 0"
    some = made(protocol="knn", data="1", provenance={"classes": [*"uvwxyz"]})
    assert runplots.class_names(store, some, K) == [*"uvwxyz"]


# -- two models ---------------------------------------------------------------------------------------


def test_differences_are_those_of_compare(store, run, tmp_path):
    for task, shares in (("one", (0.9, 0.5)), ("two", (0.6, 0.6)), ("three", (0.4, 0.8))):
        for model, share in zip("ab", shares, strict=True):
            keep(store, predicted(ord(model), share=share), model=model, task=task)
    axes = plot_comparison("a", "b", store.folder)
    rows = sorted(compare(store, "a", "b"), key=lambda row: -row.difference)
    assert [text.get_text() for text in axes.get_yticklabels()] == [f"{r.task} {r.protocol}" for r in rows]
    dots = [line for line in axes.lines if line.get_marker() in "os^Dv"]
    assert [line.get_xdata()[0] for line in dots] == pytest.approx([100 * row.difference for row in rows])
    whiskers = [segment[:, 0] for lines in axes.collections for segment in lines.get_segments()]
    assert np.array(whiskers) == pytest.approx(np.array([[100 * r.low, 100 * r.high] for r in rows]))
    looks = {(line.get_color(), line.get_marker()) for line in dots}
    assert len(looks) == 3  # a is better, no difference, b is better
    assert any(set(line.get_xdata()) == {0.0} for line in axes.lines)
    table = compare_models("a", "b", store.folder)
    said = json.loads(run("compare", "a", "b", "--results", store.folder, "--json").stdout)
    assert table.to_dict("records") == said
    for kind in ("png", "svg", "pdf"):
        path = tmp_path / "new" / f"plot.{kind}"
        run("compare", "a", "b", "--results", store.folder, "--plot", path)
        first = path.read_bytes()
        run("compare", "a", "b", "--results", store.folder, "--plot", path)
        assert path.read_bytes() == first
    said = run("compare", "a", "b", "--results", store.folder, "--plot", "plot.jpg", code=2).output
    assert "plot.jpg is not the name of a plot; it must end in .png, .svg, .pdf" in said


# -- the command --------------------------------------------------------------------------------------


def test_the_command_draws_what_a_run_has(store, run, tmp_path):
    record = keep(store, arrays=choice_arrays(), chosen={"C": 0.1})
    at = ("results", "plot", record.run_id[:6], "--results", store.folder)
    paths = run(*at).output.split()
    folder = store.plots_of(record.run_id)
    kinds = ("png", "svg", "pdf")
    wanted = [
        folder / f"{what}_{record.run_id[:8]}.{kind}"
        for what in PLOTS
        if what != "training"
        for kind in kinds
    ]
    assert paths == list(map(str, wanted))
    drawn = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in wanted}
    run(*at)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in wanted} == drawn
    run(*at, "--what", "confusion", "--output", tmp_path / "here")
    again = {path.name: path.read_bytes() for path in (tmp_path / "here").glob("[!.]*")}
    assert again == {path.name: drawn[path][0] for path in wanted if "confusion" in path.name}
    said = run(*at, "--what", "training", code=2).output
    assert "(a · digits · linear) has no training curves: nothing was trained by gradient descent" in said
    assert "it has: choice, per-class, confusion" in said
    assert "no single run 'zz'" in run("results", "plot", "zz", "--results", store.folder, code=2).output
    run("results", "rm", record.run_id, "--results", store.folder)
    assert not folder.exists()
    assert tuple(runplots.FIGURES) == PLOTS == tuple(runplots.NAMES)


def test_runs_without_data_are_refused_clearly(store, run):
    failed = dataclasses.replace(made("b", error="it broke"), scores={})
    store.save(failed, {})
    at = ("--results", store.folder)
    said = run("results", "plot", failed.run_id, *at, code=2).output
    assert "(b · digits · linear) failed, so there is nothing to draw: it broke" in said
    gone = keep(store)
    (store.runs / f"{gone.run_id}.npz").unlink()
    assert "cannot be read" in run("results", "plot", gone.run_id, *at, code=2).output
    sets = made("c", metric="mean_ap")
    identity = json.loads(json.dumps(sets.identity))
    identity["task"]["kind"] = "multilabel"
    sets = dataclasses.replace(sets, identity=identity, run_id=digest(identity))
    y = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.int8)
    store.save(sets, {"ids": np.arange(3).astype(str), "y": y, "scores": y + 0.5})
    with pytest.raises(
        BenchError, match=r"no confusions: .*its images have several labels; it has: per-class"
    ):
        plot_confusion(sets.run_id, store.folder)
    with pytest.raises(BenchError, match="no plot 'confuse' of a run; did you mean confusion"):
        runplots.figures_of(store, sets, "confuse")
    with pytest.raises(BenchError, match="no results folder"):
        plot_per_class("0", store.folder / "none")


def test_hostile_names_are_drawn_as_they_are(store, run):
    names = [f"{place} {HOSTILE}" for place in range(K)]
    texts = {"task_title": HOSTILE, "weights": HOSTILE, "chosen": {"C": 0.1, "layer": HOSTILE}}
    record = keep(store, model=HOSTILE, names=names, arrays=choice_arrays(), **texts)
    other = keep(store, predicted(9), model="b", **texts)
    store.save(few_shot(HOSTILE, HOSTILE, task_title=HOSTILE, weights=HOSTILE), {})
    run("results", "plot", record.run_id, "--results", store.folder)
    run(
        "compare", HOSTILE, other.model, "--results", store.folder, "--plot", store.folder / "plots" / "x.svg"
    )
    write_report(store)
    drawn = sorted((store.folder / "plots").rglob("*.svg"))
    assert len(drawn) >= 3 + 1 + 2
    for path in drawn:
        svg = ElementTree.fromstring(path.read_text())
        assert not list(svg.iter("script")) and "\x1b" not in path.read_text()
    title = (store.plots_of(record.run_id) / f"per-class_{record.run_id[:8]}.svg").read_text()
    assert "&lt;script&gt;" in title and "$\\frac{" in title


def test_long_names_keep_their_beginning_and_end():
    assert cut("short") == "short"
    assert (
        cut("vit_base_patch16_224.of_some_weights_v2", 20)
        == "vit_base_pa…ghts_v2"[:11] + "…" + "eights_v2"[-8:]
    )
    assert len(cut("x" * 99)) == 34


def test_ticks_at_values_are_far_enough_apart():
    assert curves._apart([1, 2, 5, 10, 25])
    assert not curves._apart([1, 1.01, 1000])
