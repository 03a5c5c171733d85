"""Trained probes as files: what they predict is what the run predicted."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import write_digits
from safetensors import safe_open

from mixmim_bench.errors import BenchError
from mixmim_bench.heads import export_head, model_with_head
from mixmim_bench.suite.records import RunStore


@pytest.fixture
def probe(run, tmp_path, my_task):
    """A finished linear probe on a checkpoint."""
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "w.pth")
    run(
        "run", "-m", f"test_vit={tmp_path / 'w.pth'}", "-t", my_task, "-p", "linear", "-p", "knn",
        "--set", "linear.steps=8", "--results", tmp_path / "r",
    )  # fmt: skip
    store = RunStore(tmp_path / "r")
    return store, next(record for record in store.records() if record.protocol == "linear")


def test_a_probe_predicts_what_its_run_predicted(run, tmp_path, probe):
    store, record = probe
    out = tmp_path / "head.safetensors"
    said = run("results", "export-head", record.run_id[:6], "--out", out, "--results", store.folder).output
    assert "3 classes x" in said
    arrays = store.arrays(record.run_id)
    pictures = [tmp_path / "images" / image for image in arrays["ids"].tolist()]
    output = run(
        "predict", *pictures, "--head", out, "--weights", tmp_path / "w.pth", "--top", 1, "--csv"
    ).stdout
    rows = list(csv.DictReader(io.StringIO(output)))
    assert [int(row["label"]) for row in rows] == arrays["best"][:, 0].tolist()
    assert rows[0]["class"].startswith("digit ")
    expected = np.exp(arrays["best_scores"][:, 0])
    assert [float(row["score"]) for row in rows] == pytest.approx(expected, abs=1e-4)
    with safe_open(out, framework="np") as file:
        assert json.loads(file.metadata()["record"])["run_id"] == record.run_id


def test_a_probe_of_a_pretrained_network_knows_new_digits(run, tmp_path, my_task):
    """On digits that no split of the task has, with the preprocessing of the run."""
    run("run", "-m", "mixmim-tiny", "-t", my_task, "-p", "linear", "--results", tmp_path / "r")
    (record,) = RunStore(tmp_path / "r").records()
    out = tmp_path / "head.safetensors"
    run("results", "export-head", record.run_id, "--out", out, "--results", tmp_path / "r")
    write_digits(tmp_path / "new", per_class=30, start=60)
    output = run("predict", tmp_path / "new", "--head", out, "--top", 1, "--csv").stdout
    rows = list(csv.DictReader(io.StringIO(output)))
    right = [row["class"] == Path(row["image"]).parent.name for row in rows]
    assert len(right) == 90 and np.mean(right) > 0.85


def test_what_is_not_its_model_is_refused(run, tmp_path, probe):
    store, record = probe
    out = tmp_path / "head.safetensors"
    export_head(store, record, out)
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "other.pth")
    with pytest.raises(BenchError, match=r"was fitted on w.pth .* not on other.pth"):
        model_with_head(out, weights=str(tmp_path / "other.pth"))
    with pytest.raises(BenchError, match="was fitted on test_vit , not on test_resnet"):
        model_with_head(out, model="test_resnet", weights=str(tmp_path / "w.pth"))
    with pytest.raises(BenchError, match="cannot be read as a head"):
        model_with_head(tmp_path / "w.pth")
    knn = next(each for each in store.records() if each.protocol == "knn")
    said = run("results", "export-head", knn.run_id, "--out", out, "--results", store.folder, code=2).output
    assert "linear probes keep theirs" in said


def test_a_head_goes_with_its_run(run, probe):
    store, record = probe
    assert store.head(record.run_id)["head_weight"].shape[0] == 3
    assert "head_weight" not in store.arrays(record.run_id)
    run("results", "rm", record.run_id, "--results", store.folder)
    assert store.head(record.run_id) == {}
