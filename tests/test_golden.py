"""What must not change while the code moves: run ids, feature keys, fingerprints, and scores to a tolerance.

`golden/suite.json` holds what the suite gave at commit ede5c38. Where a change is meant, raise the version of
what changed and write the file again: `python tests/test_golden.py`.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_digits

from mixmim_bench.cli import main
from mixmim_bench.protocols import load_protocols, resolve_protocol

GOLDEN = Path(__file__).parent / "golden" / "suite.json"
SHOWN = Path(__file__).parent.parent / "results" / "shown"
SECOND = 1_600_000_000  # the time of every file: the keys of features hold it

TASKS = {
    "arrays": """
kind = "classification"
num_classes = 10
metrics = ["top1", "mean_per_class", "roc_auc"]
[data]
layouts = ["embedded:Embedded"]
options = { dataset = "digits" }
[image]
size = 32
crop_pct = 1.0
[split]
train = "all[:300]"
val = "all[300:400]"
test = "all[400:520]"
[recipe.linear]
steps = 12
[recipe.linear-sgd]
epochs = 3
warmup_epochs = 1
batch_size = 64
base_lr = [0.1, 1.0]
[recipe.fewshot]
shots = [1, 5]
draws = 2
[recipe.finetune]
epochs = 2
batch_size = 32
warmup_epochs = 0.5
""",
    "folder": """
kind = "classification"
num_classes = 3
metrics = ["top1"]
forbid = ["hflip"]
[data]
layouts = ["folder:ImageFolder"]
[image]
size = 32
[split]
train = "train[:80%]"
val = "train[80%:]"
test = "val"
""",
    "list": """
kind = "classification"
num_classes = 3
metrics = ["mean_per_class"]
[data]
layouts = ["mixmim_bench.data.csvlist:CSVList"]
skip_unreadable = true
options.files = { train = "train.csv", val = "val.csv" }
[image]
size = 32
[split]
train = "train[:75%][:40]"
val = "train[75%:]"
test = "val"
""",
    "labels": """
kind = "multilabel"
num_classes = 20
metrics = ["mean_ap_11"]
[data]
layouts = [{ layout = "voc:VOC", year = 2007 }]
[image]
size = 32
[split]
train = "train"
val = "val"
test = "test"
[recipe.linear]
steps = 6
""",
}
PROTOCOLS = {
    "arrays": ["linear", "knn", "fewshot", "linear-sgd", "finetune"],
    "folder": ["linear", "knn"],
    "list": ["knn"],
    "labels": ["linear", "knn"],
}


def bitmap(path: Path, pixels: np.ndarray) -> None:
    """Write an image whose size in bytes no library decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.kron(pixels * 15.9, np.ones((2, 2))).astype(np.uint8)).save(path, "BMP")
    os.utime(path, (SECOND, SECOND))


def write_data(root: Path) -> None:
    """Write the images and task files."""
    data = load_digits()
    for name, start, per_class in (("train", 0, 20), ("val", 400, 10)):
        rows = [row for c in range(3) for row in np.flatnonzero(data.target[start:] == c)[:per_class] + start]
        lines = ["path,label"]
        for row in rows:
            label = data.target[row]
            bitmap(root / "folder" / name / f"digit {label}" / f"{row:04d}.bmp", data.images[row])
            bitmap(root / "list" / "images" / f"{row:04d}.bmp", data.images[row])
            lines.append(f"images/{row:04d}.bmp,{label}")
        (root / "list" / f"{name}.csv").write_text("\n".join(lines) + "\n")
    write_voc(root / "labels" / "VOCdevkit" / "VOC2007", data)
    for name, text in TASKS.items():
        (root / f"{name}.toml").write_text(f'schema = 1\nversion = 3\ntitle = "{name}"\n{text}')


def write_voc(folder: Path, data) -> None:
    """Write digits with several labels on VOC's layout: a class and the next one, some of them difficult."""
    from mixmim_bench.data.layouts.voc import CLASSES

    for part, start in (("train", 0), ("val", 200), ("test", 400)):
        rows = range(start, start + 80)
        for row in rows:
            bitmap(folder / "JPEGImages" / f"{row:06d}.jpg", data.images[row])
        for place, name in enumerate(CLASSES):
            lines = []
            for row in rows:
                digit = data.target[row]
                label = 1 if place in (digit, digit + 5, digit + 10) else -1
                lines.append(f"{row:06d} {0 if (row + place) % 37 == 0 else label}")
            path = folder / "ImageSets" / "Main" / f"{name}_{part}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n")


def command(*args: object) -> str:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.output


def observe(root: Path) -> dict[str, dict]:
    """Run the suite, and collect of each run what must stay, and the keys of all features."""
    write_data(root)
    for name, protocols in PROTOCOLS.items():
        chosen = [part for protocol in protocols for part in ("-p", protocol)]
        command(
            *("run", "-m", "test_vit", "--weights", "random", "-t", root / f"{name}.toml", *chosen),
            *(
                "--data-root",
                f"{name}={root / name}",
                "--threads",
                "1",
                "--seed",
                "3",
                "--no-report",
                "--results",
                root / "results",
            ),
        )
    runs = {}
    for path in sorted((root / "results" / "runs").glob("*.json")):
        record = json.loads(path.read_text())
        identity = record["identity"]
        runs[f"{identity['task']['name']} {identity['protocol']['name']}"] = {
            "run_id": record["run_id"],
            "data": identity["data"],
            "data_bytes": record["data_bytes"],
            "scores": {
                name: [s[k] for k in ("value", "low", "high")] for name, s in record["scores"].items()
            },
            "chosen": record["chosen"],
            "counts": record["counts"],
        }
    features = {
        f"{row['task']} {row['role']} {row['layer']}": row["key"]
        for row in json.loads(command("cache", "ls", "--json"))
    }
    return {"runs": runs, "features": features}


def recipes() -> dict[str, dict]:
    """Resolve every protocol with each of its presets: what goes into the identities of runs."""
    return {
        f"{kind} {name} {preset}": resolve_protocol(name, kind, preset, {}, random_weights=False).to_dict()
        for (name, kind), cls in sorted(load_protocols().items())
        for preset in sorted(cls.presets)
    }


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXMIM_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield observe(tmp_path_factory.mktemp("golden"))


def test_recipes_stay(golden):
    """A new hyper-parameter stays out of the identity where it has its default (`contract.later`)."""
    assert json.loads(json.dumps(recipes())) == golden["recipes"]


def test_run_ids_and_fingerprints_stay(golden, observed):
    for name, expected in golden["runs"].items():
        found = observed["runs"][name]
        for key in ("data", "data_bytes", "counts", "run_id"):
            assert found[key] == expected[key], f"{name}: {key}"
    assert observed["runs"].keys() == golden["runs"].keys()


def test_keys_of_features_stay(golden, observed):
    assert observed["features"] == golden["features"]


def test_scores_stay(golden, observed):
    for name, expected in golden["runs"].items():
        found = observed["runs"][name]
        assert found["scores"].keys() == expected["scores"].keys()
        for metric, values in expected["scores"].items():
            np.testing.assert_allclose(
                found["scores"][metric], values, atol=0.03, err_msg=f"{name}: {metric}"
            )
        assert found["chosen"].keys() == expected["chosen"].keys()


def test_finished_results_of_before_are_found_again():
    """The results that the project shows were made before; a start on them has nothing to do."""
    said = command("run", "-m", "mixmim-b", "-s", "embedded", "--results", SHOWN, "--dry-run")
    rows = [line for line in said.splitlines() if line.startswith("mixmim-b ") and "random init" in line]
    assert len(rows) == 4
    assert all(line.rstrip().endswith("finished") for line in rows), said


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        os.environ["MIXMIM_BENCH_CACHE"] = f"{folder}/cache"
        values = {"recipes": recipes(), **observe(Path(folder))}
    GOLDEN.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
    sys.exit(0)
