"""Results that others have published: read, drawn, and never mixed with measured ones."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from records import cost, made

from mixmim_bench import registry
from mixmim_bench.registry import MODELS, weights_folder
from mixmim_bench.report.claims import CLAIM, SHOWN, TRANSFER, points_of, write_published
from mixmim_bench.report.leaderboard import leaderboard
from mixmim_bench.report.plots import panels
from mixmim_bench.report.published import MIXMIM, SAME_IMAGES, load_published, of_task, of_weights
from mixmim_bench.report.reproduction import reproductions
from mixmim_bench.report.write import write_report
from mixmim_bench.specs import ModelSpec, Weights, WeightsSpec
from mixmim_bench.suite.records import RunStore


def test_published_values_are_plausible_and_have_sources():
    rows = load_published()
    assert len(rows) == 507
    for row in rows:
        assert 0 < row.value < 100
        assert row.source
        assert row.link.startswith("https://") or not row.link
        assert row.gmacs is None or row.gmacs > 0
    assert sum(bool(row.link) for row in rows) > 480


def test_of_several_values_the_most_official_is_taken():
    mae = {row.backbone: row for row in of_task("imagenet1k", "finetune", "top1") if row.method == "MAE"}
    assert mae["ViT-B/16"].value == 83.664
    assert mae["ViT-B/16"].source_kind == "official_readme"
    every = of_task("imagenet1k", "finetune", "top1")
    keys = {(row.method, row.backbone, row.input_size, row.pretrain_data) for row in every}
    assert len(keys) == len(every)
    mixed = of_task("imagenet1k", "finetune", "top1", ())
    large = {row.pretrain_data: row.value for row in mixed if row.model == "BEiT v2 ViT-L/16"}
    assert large["ImageNet-1K"] == 87.3  # beside the one with labels of ImageNet-21K, not replaced by it
    assert len(large) > 1
    assert {row.pretrain_data for row in every} <= set(SAME_IMAGES)


def test_registered_models_agree_with_the_published_file():
    """The scores that the registry holds of MixMIM's checkpoints are those of the file."""
    ours = {round(row.value, 2) for row in load_published() if row.method == MIXMIM and row.metric == "top1"}
    for model in MODELS:
        for checkpoint in model.weights:
            if "top1" in checkpoint.published:
                assert round(checkpoint.published["top1"], 2) in ours, checkpoint.name
                weights = Weights(kind="file", name=checkpoint.name)
                assert of_weights(model, weights) == dict(checkpoint.published)


def test_the_figure_of_the_claim_has_mixmim_beside_the_others(tmp_path):
    written = write_published(tmp_path)
    points = points_of([row for row in of_task(CLAIM[0], "finetune", "top1") if row.gmacs])
    named = {point.label: (point.x, point.value) for point in points if point.bold}
    assert named["MixMIM-B"] == (16.3, pytest.approx(0.851))
    assert named["MixMIM-L"] == (35.9, pytest.approx(0.859))
    assert {"MAE", "SimMIM", "BEiT", "FCMAE (ConvNeXt V2)", "supervised (Swin)"} <= {p.group for p in points}
    assert {point.group for point in points if not point.pale} <= set(SHOWN)
    svg = (tmp_path / "published.svg").read_text()
    for label in ("MixMIM-B", "MixMIM-L (384)", "SimMIM", "not measured here"):
        assert label in svg
    assert {path.name for path in written.paths} == {
        *(f"{name}.{kind}" for name in ("published", "published_transfer") for kind in ("png", "svg", "pdf")),
        "published.md",
    }
    row = next(line for line in written.markdown.splitlines() if line.startswith("| MixMIM-B  "))
    assert row.count("not published") == len(TRANSFER)
    assert "Cascade Mask R-CNN" in written.markdown


def test_the_same_bytes_are_drawn_again(tmp_path):
    first = {path.name: path.read_bytes() for path in write_published(tmp_path / "a").paths}
    again = {path.name: path.read_bytes() for path in write_published(tmp_path / "b").paths}
    assert first == again


def test_published_rows_stand_apart(tmp_path):
    store = RunStore(tmp_path)
    store.prepare()
    for model, value in (("a", 0.8), ("b", 0.9)):
        record = made(model, value, task="imagenet1k", protocol="finetune")
        store.save(record, {})
    records = store.records()
    plain = write_report(store)
    both = write_report(store, published=True)
    assert both.markdown.startswith(plain.markdown)
    after = both.markdown.removeprefix(plain.markdown)
    assert "Published by others: not measured here" in after
    assert re.search(r"\| MAE ViT-B/16 +\|.*\[83.664\]\(https://", after)
    frame = (tmp_path / "results.csv").read_text()
    assert "MAE" not in frame
    costs = {f"{model}-run": cost(model, 4.0) for model in "ab"}
    (panel, *_) = panels(leaderboard(records), costs, published=True)
    pale = [point for point in panel.points if point.pale]
    assert len(pale) > 50
    assert not any(point.named for point in pale)
    assert len(panel.points) - len(pale) == 2


@pytest.mark.parametrize("folder", ["new", "new/deeper"])
def test_the_command_needs_no_results(run, tmp_path, folder):
    said = run("report", "--published-only", "--results", tmp_path / folder).output
    assert "Written:" in said
    assert (tmp_path / folder / "published.png").exists()


def test_the_table_in_the_docs_is_that_of_the_file(tmp_path):
    """`mixmim-bench report --published-only --results results/shown` writes it again."""
    shown = Path(__file__).parent.parent / "results" / "shown" / "published.md"
    assert shown.read_text() == f"{write_published(tmp_path).markdown}\n"


# -- reproduction -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("published", "value", "verdict"),
    [(84.6, 0.847, "within"), (84.6, 0.83, "below"), (84.6, 0.87, "above"), (82.95, 0.83, "within")],
)
def test_a_published_score_is_within_the_interval_or_not(published, value, verdict):
    checkpoint = WeightsSpec(
        name="w", file="w.pth", published={"top1": published, "top5": 97.0}, finetuned=True
    )
    model = ModelSpec(name="a", arch="a", weights=(checkpoint,))
    record = made("a", value, task="imagenet1k", protocol="own-head")
    score = {"value": value, "low": value - 0.003, "high": value + 0.003, "n": 50_000}
    (found,) = reproductions([dataclasses.replace(record, scores={"top1": score})], [model])
    assert found.verdict == verdict
    assert found.measured == pytest.approx(100 * value)
    assert not reproductions([made("b", value)], [model])


def test_the_command_runs_the_classifier_of_published_weights(run, tmp_path, monkeypatch, my_task):
    torch.manual_seed(1)
    network = timm.create_model("test_vit", num_classes=3)
    weights_folder().mkdir(parents=True, exist_ok=True)
    at = ("-t", my_task, "--results", tmp_path / "r")

    def publish(score):
        published = WeightsSpec(name="ft", file="ft.pth", finetuned=True, published={"top1": score})
        spec = ModelSpec(name="mine", arch="test_vit", weights=(published,), aliases=("ft",))
        monkeypatch.setattr(registry, "MODELS", (spec,))

    publish(0.1)
    assert (
        "no weights with a published score are on this machine" in run("check-published", *at, code=2).output
    )
    torch.save(network.state_dict(), weights_folder() / "ft.pth")
    said = run("check-published", *at, code=1).stdout
    assert "measured above published" in said
    (record,) = RunStore(tmp_path / "r").records()
    publish(round(100 * record.scores["top1"]["value"], 1))
    (found,) = json.loads(run("check-published", "-m", "ft", *at, "--json").stdout)
    assert found["verdict"] == "within"
    assert found["run_id"] == record.run_id
