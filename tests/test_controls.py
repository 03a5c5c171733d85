"""Controls: pixels, random weights, permuted labels and noise, which show what scores of probes are worth."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from records import made
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from test_page import data_in
from torch import nn

from mixmim_bench.api import run_suite
from mixmim_bench.data.dataset import open_task
from mixmim_bench.data.transforms import Noise, eval_transform
from mixmim_bench.errors import BenchError
from mixmim_bench.models.build import build, preprocessing
from mixmim_bench.registry import find_model
from mixmim_bench.report.controls import controls_markdown, controls_of, noise_panels, shown
from mixmim_bench.report.leaderboard import leaderboard
from mixmim_bench.specs import NO_WEIGHTS, Preprocessing
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.resolve import resolve
from mixmim_bench.suite.selection import in_variant, load_tasks, select_tasks
from mixmim_bench.suite.wanted import Selection

PIXELS = find_model("pixels")
FEW = "digits@train400val100"


@pytest.fixture(scope="module")
def controlled(tmp_path_factory):
    """The results of probes on pixels of digits, with controls."""
    folder = tmp_path_factory.mktemp("controlled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXMIM_BENCH_CACHE", str(folder / "cache"))
        patch.setenv("MIXMIM_BENCH_OFFLINE", "1")
        run_suite(
            "pixels",
            FEW,
            ["linear", "knn"],
            controls=True,
            results=folder / "results",
            settings={"linear.low": -5, "linear.high": -2, "linear.steps": 4},
            progress=False,
        )
    return RunStore(folder / "results")


def test_scores_fall_with_the_signal_to_those_of_the_most_frequent_classes(controlled):
    records = controlled.records()
    found = {
        each.protocol: each for each in controls_of(leaderboard(r for r in records if not r.control), records)
    }
    assert set(found) == {"linear", "knn"}
    for each in found.values():
        curve = [each.score.value, *(each.noise[percent].value for percent in (50, 75, 90, 100))]
        assert curve == sorted(curve, reverse=True) and curve[0] > 0.9
        n, frequent = each.score.record.scores["top1"]["n"], each.frequent
        assert curve[-1] < stats.binom.isf(1e-3, n, frequent) / n
        assert each.permuted.value < 0.2 and not each.suspicious
        assert each.chance == pytest.approx(0.1)
        assert each.pixels is not None and each.random is None  # pixels have no weights


def test_pixels_score_what_scikit_learn_finds_in_them(controlled):
    (record,) = [r for r in controlled.records() if r.task == FEW and r.protocol == "linear"]
    (few,) = select_tasks([FEW], ())
    data = open_task(few)
    transform, network = eval_transform(preprocessing(PIXELS)), build(PIXELS, NO_WEIGHTS, (32, 32), 0)

    def rows(*roles):
        parts = [data.splits[role].part for role in roles]
        images = [transform(part.images.load(row)) for part in parts for row in range(len(part))]
        return network(torch.stack(images)).numpy(), np.concatenate([part.labels for part in parts])

    x, y = rows("train", "val")
    assert x.shape[1] == 3 * 32 * 32
    scale = StandardScaler().fit(x)
    theirs = LogisticRegression(C=record.chosen["C"], tol=1e-6, max_iter=5000).fit(scale.transform(x), y)
    x, y = rows("test")
    assert record.scores["top1"]["value"] == pytest.approx(theirs.score(scale.transform(x), y), abs=0.005)


def test_permuted_labels_use_the_features_of_the_images_with_their_own(controlled):
    runs = {(r.task, r.protocol): r for r in controlled.records()}
    assert runs[f"{FEW}@permuted", "linear"].timings["extract_s"] == 0
    assert runs[f"{FEW}@noise50", "linear"].timings["extract_s"] > 0
    plain, task = select_tasks([FEW, f"{FEW}@permuted"], ())
    own = open_task(plain)
    other = open_task(task)
    for role in ("train", "val"):
        mine, theirs = own.splits[role], other.splits[role]
        assert mine.stamp == theirs.stamp and (mine.part.ids == theirs.part.ids).all()
        assert (np.bincount(mine.part.labels) == np.bincount(theirs.part.labels)).all()
        assert np.mean(mine.part.labels == theirs.part.labels) < 0.2
    assert (own.splits["test"].part.labels == other.splits["test"].part.labels).all()
    assert (open_task(task).splits["train"].part.labels == other.splits["train"].part.labels).all()


def test_controls_stand_in_a_table_of_their_own(controlled):
    folder = controlled.folder
    table = (folder / "leaderboard.md").read_text()
    above, _, below = table.partition("| Task ")
    assert "noise" not in above and "permuted" not in above
    assert f"{FEW} linear" in below and "Noise 100 %" in below
    wide = (folder / "leaderboard.csv").read_text().splitlines()[0]
    assert "permuted" not in wide and "noise" not in wide
    assert f"{FEW}@permuted" in (folder / "results.csv").read_text()
    in_page = data_in((folder / "report.html").read_text())["controls"]
    assert in_page["titles"][-1] == "Noise 100 %" and [row[0] for row in in_page["rows"]] == [
        f"{FEW} knn",
        f"{FEW} linear",
    ]


def test_the_curve_over_noise_begins_without_noise_and_ends_without_signal(controlled):
    records = controlled.records()
    found = controls_of(leaderboard(r for r in records if not r.control), records)
    panels = noise_panels(found)
    assert [panel.title[1] for panel in panels] == [each.score.record.protocol_title for each in found]
    for panel, each in zip(panels, found, strict=True):
        curve, frequent = panel.curves
        assert curve.x == (0.0, 50.0, 75.0, 90.0, 100.0) and frequent.pale
        scores = [each.score, *(each.noise[percent] for percent in (50, 75, 90, 100))]
        assert curve.y == tuple(100 * cell.value for cell in scores)
        assert all(low <= y <= high for low, y, high in zip(curve.low, curve.y, curve.high, strict=True))
        assert frequent.y == (100 * each.frequent,) * 2
    assert (controlled.folder / "plots" / "noise.svg").exists()


def test_finished_controls_are_not_run_again(controlled, monkeypatch):
    monkeypatch.setenv("MIXMIM_BENCH_CACHE", str(controlled.folder.parent / "cache"))
    before = {path.name: path.stat().st_mtime_ns for path in controlled.runs.iterdir()}
    frame = run_suite(
        *("pixels", FEW, ["linear", "knn"]),
        controls=True,
        results=controlled.folder,
        settings={"linear.low": -5, "linear.high": -2, "linear.steps": 4},
        progress=False,
    )
    assert {path.name: path.stat().st_mtime_ns for path in controlled.runs.iterdir()} == before
    assert len(set(frame.task)) == 6


def test_random_weights_are_a_control_of_trained_ones_but_not_of_objects(tmp_path, run):
    plan = run(
        "run", "-m", "mixmim-tiny", "-t", "digits", "-p", "linear", "--controls", "--dry-run", "--json"
    )
    rows = [json.loads(line) for line in plan.stdout.splitlines()]
    named = [(row["model"], row["weights"], row["task"]) for row in rows]
    assert ("mixmim-tiny", "random init", "digits") in named and ("pixels", "no weights", "digits") in named
    assert ("mixmim-tiny", "random init", "digits@permuted") not in named
    assert len(named) == len(set(named)) == 8
    frame = run_suite(
        {"mine": nn.Conv2d(3, 4, 8)},
        "digits@limit60",
        "knn",
        controls=True,
        results=tmp_path / "results",
        progress=False,
    )
    assert {"mine", "pixels"} == set(frame.model) and not frame.random_init.any()


def test_controls_are_resized_alike_and_pixels_have_no_layers_of_networks():
    chosen = {"models": ["mixmim-tiny"], "tasks": ["digits"], "protocols": ["linear"], "controls": True}
    planned = resolve(Selection(**chosen, resize="fast"), lambda _: None).planned
    assert {each.run.model.name for each in planned} == {"mixmim-tiny", "pixels"}
    assert {each.run.preprocessing.resize for each in planned} == {"fast"}
    said = []
    planned = resolve(Selection(**chosen, layers="stage3"), said.append).planned
    assert {each.run.model.name for each in planned} == {"mixmim-tiny"} and len(planned) == 7
    assert "pixels · digits · linear is left out of the controls" in "\n".join(said)


def test_noise_keeps_the_variance_and_depends_on_the_image_alone():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 32, 32, generator=generator)
    for percent in (1, 50, 100):
        noisy = torch.stack([Noise(percent)(image) for image in images])
        assert noisy.std().item() == pytest.approx(1.0, abs=0.01)
        correlation = np.corrcoef(noisy.flatten(), images.flatten())[0, 1]
        assert correlation == pytest.approx((1 - percent / 100) ** 0.5, abs=0.01)
        assert torch.equal(Noise(percent)(images[0]), noisy[0])
    assert abs(np.corrcoef(noisy[0].flatten(), noisy[1].flatten())[0, 1]) < 0.1


def test_noise_is_in_the_identity_and_no_noise_is_not():
    plain = preprocessing(PIXELS)
    values = {**vars(plain), "noise": 50}
    noisy = Preprocessing(**values)
    assert "noise" not in plain.identity() and noisy.identity() == {**plain.identity(), "noise": 50}
    assert noisy.describe() == f"{plain.describe()}, 50 % noise"
    image = Image.fromarray(np.full((32, 32, 3), 128, dtype=np.uint8))
    assert not torch.equal(eval_transform(noisy)(image), eval_transform(plain)(image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-t", "digits", "-p", "finetune"), "select a classification task and -p linear, knn or fewshot"),
        (("-t", "digit-scenes-seg", "-p", "linear"), "select a classification task"),
    ],
)
def test_controls_of_what_has_none_are_refused(run, options, message):
    result = run("run", "-m", "pixels", *options, "--controls", code=2)
    assert message in result.output


@pytest.mark.parametrize("variant", ["noise0", "noise101", "noise", "permute"])
def test_unknown_controls_are_refused(variant):
    with pytest.raises(BenchError, match="no variant"):
        in_variant(load_tasks()["digits"], variant)


@pytest.mark.parametrize("precisions", [["bfloat16"], ["float32", "bfloat16"], ["bfloat16", "float32"]])
def test_controls_have_the_precision_of_their_probe(precisions):
    values = {"float32": 0.0, "bfloat16": 0.05}  # added to the scores in that precision
    records = [made("pixels", 0.5), made("mixmim-tiny", 0.4, random_init=True, weights="random init")]
    for precision in precisions:
        added = values[precision]
        records += [
            made("mixmim-tiny", 0.8 + added, precision=precision),
            made("mixmim-tiny", 0.1 + added, task="digits@noise100", precision=precision),
        ]
        if len(precisions) > 1 and precision != "float32":
            records.append(made("pixels", 0.5 + added, precision=precision))
            random = made("mixmim-tiny", 0.4 + added, precision=precision, random_init=True,
                          weights="random init")  # fmt: skip
            records.append(random)
    for record in records:
        record.identity["task"]["num_classes"] = 10
    found = controls_of(leaderboard(each for each in records if not each.control), records)
    table = {row["Model"]: (row["Score"], row["Pixels"], row["Random weights"]) for row in shown(found)}
    of_float32 = {"mixmim-tiny (w)": ("80.0", "50.0", "40.0")} if len(precisions) > 1 else {}
    of_bfloat16 = ("85.0", "55.0", "45.0") if len(precisions) > 1 else ("85.0", "-", "-")
    assert table == {**of_float32, "mixmim-tiny (w, bfloat16)": of_bfloat16}
    (panel,) = noise_panels(found)
    assert {curve.label for curve in panel.curves if not curve.pale} == set(table)


def test_a_probe_that_scores_without_signal_is_marked():
    def scored(task, value):
        record = made("mixmim-tiny", value, task=task)
        record.scores["top1"]["guess"] = 0.1
        record.identity["task"]["num_classes"] = 10
        return record

    def marked(permuted, empty):
        records = [
            scored("digits", 0.9),
            scored("digits@permuted", permuted),
            scored("digits@noise100", empty),
        ]
        found = controls_of(leaderboard(records[:1]), records)
        return found[0].suspicious, controls_markdown(found)

    assert marked(0.1, 0.12)[0] == []
    assert marked(0.17, 0.17)[0] == []  # above its interval, but below a tenth of the gain
    leaking, table = marked(0.4, 0.11)
    assert leaking == ["permuted"] and "40.0 !" in table and "leaks of labels" in table
    assert marked(0.1, 0.3)[0] == ["noise100"]
