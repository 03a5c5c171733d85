"""The suite as its users run it: records, resume, failures, tables."""

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from children import Stop, commanded, forked, interrupt
from PIL import Image

from mixmim_bench.specs import digest

QUICK = ("run", "-m", "test_vit", "-t", "digits", "-p", "knn", "-p", "finetune")


MEASURED = ["images_per_s", "peak_memory_mb", "peak_share"]  # another start measures them again


def all_records(results):
    return [json.loads(p.read_text()) for p in (results / "runs").glob("*.json")]


def records(results):
    return {
        (r["identity"]["task"]["name"], r["identity"]["protocol"]["name"]): r for r in all_records(results)
    }


def planned(said):
    """The rows of the table that a dry run shows, in words."""
    lines = said.splitlines()
    top = next(i for i, line in enumerate(lines) if line.startswith("-----"))
    return [line.split() for line in itertools.takewhile(str.strip, lines[top + 1 :])]


class Finished(NamedTuple):
    """A whole run: its results folder, what it said, and how long it took."""

    results: Path
    said: str
    seconds: float


@pytest.fixture(scope="module")
def finished(tmp_path_factory, costs):
    """One whole run of the suite, made by the command a user types."""
    folder = tmp_path_factory.mktemp("finished")
    command = [sys.executable, "-m", "mixmim_bench.cli", *QUICK, "-p", "linear", "--results", "results"]
    env = {**os.environ, "MIXMIM_BENCH_OFFLINE": "1", "MIXMIM_BENCH_CACHE": str(folder / "cache")}
    clock = time.monotonic()
    child = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)
    assert child.returncode == 0, child.stderr
    assert child.stdout.count("measuring the cost of test_vit at") == 2
    costs.take(folder / "results")
    return Finished(folder / "results", child.stdout, time.monotonic() - clock)


@pytest.fixture
def copied(finished, tmp_path):
    """The results of the whole run, to be changed at will."""
    return shutil.copytree(finished.results, tmp_path / "copied")


def test_a_record_tells_everything(finished):
    record = records(finished.results)["digits", "linear"]
    assert len(json.dumps(record)) < 5000
    score = record["scores"]["top1"]
    assert 0.5 < score["low"] < score["value"] < score["high"] < 1.0
    assert score["n"] == record["counts"]["n_test"] == 500
    assert record["counts"] == {
        **{"n_train": 1000, "n_val": 297, "n_test": 500},
        **{"skipped_train": 0, "skipped_val": 0, "skipped_test": 0},
        **{"val_in_train": 0, "test_in_train_or_val": 0},
        **{"head_params": 650, "head_macs": 640},
    }
    assert record["chosen"]["C"] > 0 and record["chosen"]["layer"] == "own"
    assert record["model"] == "test_vit" and record["weights"] == "random init" and record["random_init"]
    assert record["identity"]["preprocessing"]["size"] == [32, 32]
    assert record["timings"]["total_s"] > 0
    for key in ("git_sha", "dirty", "versions", "device", "threads", "started"):
        assert key in record["provenance"]
    assert record["error"] == ""


def test_predictions_are_kept_and_give_the_score(finished):
    for record in records(finished.results).values():
        with np.load(finished.results / "runs" / f"{record['run_id']}.npz", allow_pickle=False) as kept:
            assert len(set(kept["ids"].tolist())) == 500
            top1 = (kept["best"][:, 0] == kept["y"]).mean()
        assert top1 == pytest.approx(record["scores"]["top1"]["value"])


def test_tables_and_plots_are_written(finished):
    results, said = finished.results, finished.said
    table = pd.read_csv(results / "leaderboard.csv")
    assert table["model"].tolist() == ["test_vit"]
    assert table["params_m"][0] == pytest.approx(0.365, abs=0.01)
    assert table["images_per_s"][0] > 1
    assert 0.0 < table["peak_share"][0] < 1.5 and table["activations_m"][0] > 0.1
    value = records(results)["digits", "linear"]["scores"]["top1"]["value"]
    assert table["digits linear"][0] == value
    markdown = (results / "leaderboard.md").read_text()
    assert f"{100 * value:.1f} (" in markdown and "**random init**" in markdown
    assert markdown.partition("\n\nTest images")[0].strip() in said
    with Image.open(results / "plots" / "flops_vs_accuracy.png") as picture:
        assert picture.width > 800
    svg = (results / "plots" / "flops_vs_accuracy.svg").read_text()
    assert "test_vit" in svg and "random init" in svg


def test_a_second_start_does_nothing_again(finished, run):
    results = finished.results
    before = {p: p.stat().st_mtime_ns for p in results.rglob("*.json")}
    table = (results / "leaderboard.csv").read_bytes()
    said = run(*QUICK, "--results", results).output
    assert "2 of 2 runs finished already" in said
    assert {p: p.stat().st_mtime_ns for p in results.rglob("*.json")} == before
    assert (results / "leaderboard.csv").read_bytes() == table


def test_a_run_without_a_report_leaves_that_to_report(finished, run, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(finished.results, results, ignore=shutil.ignore_patterns("leaderboard.*", "report.html"))
    (tmp_path / "suite.toml").write_text("schema = 1\n[machine]\nreport = false\n")
    for arguments in (["--no-report"], [tmp_path / "suite.toml"]):
        said = run(*QUICK, *arguments, "--results", results).output
        assert f"mixmim-bench report --results {results} writes the leaderboard" in said
        assert not list(results.glob("leaderboard.*")) and not (results / "report.html").exists()
    run("report", "--results", results)
    for name in ("leaderboard.csv", "leaderboard.md", "report.html"):
        assert (results / name).read_bytes() == (finished.results / name).read_bytes()


@pytest.mark.parametrize("command", ["run", "report"])
def test_a_finished_suite_imports_nothing_that_computes(finished, run, command):
    results = finished.results
    arguments = ["report"] if command == "report" else list(map(str, QUICK))
    run(*QUICK, "--results", results)  # works out the facts of this session's cache
    code = (
        "import sys\n"
        "from mixmim_bench.cli import main\n"
        f"main({[*arguments, '--results', str(results)]!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'torchvision', 'timm', 'sklearn', 'matplotlib', 'fvcore'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "test_vit" in done.stdout


def test_the_report_is_made_from_records_alone(finished, run):
    results = finished.results
    made = ["leaderboard.csv", "leaderboard.md", "plots/flops_vs_accuracy.svg"]
    before = {name: (results / name).read_bytes() for name in made}
    for name in made:
        (results / name).unlink()
    run("report", "--results", results)
    assert {name: (results / name).read_bytes() for name in made} == before


def test_two_runs_give_the_same_scores(finished, run, tmp_path):
    run(*QUICK, "--results", tmp_path)
    first, second = records(finished.results), records(tmp_path)
    assert len(second) == 2
    for key in second:
        assert first[key]["scores"] == second[key]["scores"]
        assert first[key]["run_id"] == second[key]["run_id"]


def test_a_dry_run_shows_the_plan_and_does_nothing(run, tmp_path):
    said = run(*QUICK, "-p", "linear", "--dry-run", "--results", tmp_path / "none").output
    rows = planned(said)
    assert [row[4] for row in rows] == ["knn", "finetune", "linear"]
    assert rows[0][6:8] == ["1797", "0"] and rows[1][6:9] == [
        "1278",
        "0",
        "2594",
    ]  # 500 of test, 778 of train
    assert rows[2][6:8] == ["1797", "1797"]  # knn will have made the features
    assert "test_vit on digits: resize to 32 (bicubic), center crop 32 x 32, mean 0.5, 0.5, 0.5" in said
    assert f"Features: {1797 * 64 * 4 / 1e9:.2f} GB will be written" in said
    assert not (tmp_path / "none").exists()


def test_a_dry_run_knows_what_is_at_hand_and_what_is_missing(run, tmp_path):
    args = ("run", "-m", "test_vit", "--weights", "random", "-p", "knn", "--results", tmp_path / "results")
    run(*args, "-t", "digits")
    said = run(*args, "-t", "digits", "-t", "cifar10", "-p", "linear", "--dry-run").output
    rows = planned(said)
    assert [row[4] for row in rows] == ["knn", "linear"] and "finished" in rows[0]
    assert rows[1][6:8] == ["1797", "1797"] and "Features: 0.00 GB" in said
    assert "Missing: cifar10: not found: folder cifar10; no data root is set" in said
    run(*args, "-t", "cifar10", code=2)


WHOLE = (*QUICK, "-p", "linear")
# where the process is killed, one start after the other, and how many runs are finished then
KILLS = [
    (Stop("before", "*/chunks/000000000.npz"), 0),
    (Stop("after", "*/chunks/000000000.npz"), 0),
    (Stop("after", "*/x.npy"), 0),
    (Stop("after", "*/whole.json"), 0),
    (Stop("before", "*/runs/*.npz"), 0),
    (Stop("before", "*/runs/*.json"), 0),
    (Stop("after", "*/runs/*.json"), 1),
    (Stop("before", function="mixmim_bench.training.loop:Trainer._step", count=20), 1),
    (Stop("after", "*/runs/*.json", count=2), 3),
    (Stop("before", "*/leaderboard.md"), 3),
]


def test_killed_at_every_step_it_goes_on_and_ends_the_same(finished, costs, tmp_path):
    results, log = tmp_path / "results", tmp_path / "log"
    costs.lend(results)
    for stop, expected in KILLS:
        assert forked(*WHOLE, "--results", results, log=log, stop=stop).wait() == -signal.SIGKILL, stop
        assert len(all_records(results)) == expected, stop
    assert forked(*WHOLE, "--results", results, log=log).wait() == 0
    assert "3 of 3 runs finished already" in log.read_text()
    ends_the_same(results, finished.results)


def ends_the_same(results, expected):
    ours, theirs = (pd.read_csv(folder / "leaderboard.csv") for folder in (results, expected))
    pd.testing.assert_frame_equal(ours.drop(columns=MEASURED), theirs.drop(columns=MEASURED))
    ours, theirs = ({key: r["scores"] for key, r in records(f).items()} for f in (results, expected))
    assert ours == theirs


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_ends_the_same(finished, tmp_path):
    """SIGKILL a few times, each a random moment within the time of a run; the tables must end the same."""
    results, cache = tmp_path / "results", tmp_path / "cache"
    command = [sys.executable, "-m", "mixmim_bench.cli", *WHOLE, "--results", results]
    env = {**os.environ, "MIXMIM_BENCH_OFFLINE": "1", "MIXMIM_BENCH_CACHE": str(cache)}
    seed = time.time_ns()
    print(f"moments of SIGKILL drawn from seed {seed}")  # shown if the test fails
    moments = random.Random(seed)
    seconds, kills = finished.seconds, 0
    for attempt in range(8):
        patience = 600 if attempt == 7 else moments.uniform(0.2, 0.7) * seconds
        started = time.monotonic()
        try:
            child = subprocess.run(command, env=env, timeout=patience, capture_output=True, text=True)
        except subprocess.TimeoutExpired:  # subprocess.run has killed it with SIGKILL
            kills += 1
        else:
            assert child.returncode == 0, child.stderr
            if kills:
                break
            seconds = time.monotonic() - started  # fewer tests run beside it than beside the first run
            shutil.rmtree(results)
            shutil.rmtree(cache)
    assert kills > 0
    ends_the_same(results, finished.results)


def test_ctrl_c_keeps_what_is_finished(costs, tmp_path):
    """SIGINT in the middle of the second run."""
    costs.lend(tmp_path)
    stop = Stop("before", function="mixmim_bench.training.loop:Trainer._step", count=20, do=interrupt)
    log = tmp_path / "log"
    code = forked(*WHOLE, "--results", tmp_path, log=log, stop=stop).wait()
    said = log.read_text()
    assert code == 130, said
    assert "[2/3]" in said and "[3/3]" not in said
    assert "Interrupted" in said and "Traceback" not in said
    assert list(records(tmp_path)) == [("digits", "knn")]
    assert (tmp_path / "leaderboard.md").read_text().count("digits knn") == 1


def test_a_half_written_record_is_done_again(copied, run):
    first = records(copied)
    path = copied / "runs" / f"{first['digits', 'knn']['run_id']}.json"
    path.write_text(path.read_text()[:200])
    said = run("report", "--results", copied).output
    assert f"Skipped, not a valid record: {path}" in said
    assert "digits knn" not in (copied / "leaderboard.md").read_text()
    assert "1 of 2 runs finished already" in run(*QUICK, "--results", copied).output
    assert records(copied)["digits", "knn"]["scores"] == first["digits", "knn"]["scores"]


# -- a user's own images -----------------------------------------------------------------------------

MINE = ("run", "-m", "test_vit", "-p", "knn")


def test_an_own_task_refuses_without_pretrained_weights(run, my_task, tmp_path):
    said = run(*MINE, "-t", my_task, "--results", tmp_path / "r", code=2).output
    assert "no pretrained weights" in said and "--weights random" in said and "mine" in said
    assert not list((tmp_path / "r" / "runs").iterdir())


def test_the_refusal_names_address_hash_and_place(run, my_task, tmp_path):
    said = run("run", "-m", "mixmim-b", "-t", my_task, "--results", tmp_path / "r", code=2).output
    assert "https://download.openmmlab.com/" in said and "44fe8d2c" in said
    assert os.environ["MIXMIM_BENCH_CACHE"] in said


def test_an_own_task_runs(run, my_task, tmp_path):
    said = run(
        *MINE,
        "-p",
        "linear",
        "-p",
        "finetune",
        "-t",
        my_task,
        "--weights",
        "random",
        "--results",
        tmp_path / "r",
    ).output
    assert "mine finetune" in said
    assert records(tmp_path / "r")["mine", "knn"]["scores"]["top1"]["value"] > 0.5


def test_a_corrupt_image_fails_its_task_and_the_others_go_on(run, my_task, tmp_path):
    image = next((tmp_path / "images" / "val").rglob("*.png"))
    image.write_bytes(b"not an image")
    args = (*MINE, "-t", my_task, "-t", "digits", "--weights", "random", "--results", tmp_path / "r")
    said = run(*args, code=1).output
    assert f"1 of 30 images cannot be read: {image}" in said.replace("\n", "")
    found = records(tmp_path / "r")
    assert "UnreadableImages" in found["mine", "knn"]["error"] and not found["mine", "knn"]["scores"]
    assert found["digits", "knn"]["scores"]
    assert "mine knn" not in (tmp_path / "r" / "leaderboard.md").read_text()

    # mended, the failed run is done and the other is not done again
    text = my_task.read_text().replace("[data]", "[data]\nskip_unreadable = true")
    my_task.write_text(text)
    assert "1 of 2 runs finished already" in run(*args).output
    (again,) = [r for r in all_records(tmp_path / "r") if r["identity"]["task"]["name"] == "mine"]
    assert again["counts"]["skipped_test"] == 1 and again["scores"]["top1"]["n"] == 29


def test_settings_that_differ_get_rows_of_their_own(run, my_task, tmp_path):
    args = (
        "run",
        "-m",
        "test_vit",
        "-p",
        "finetune",
        "-t",
        my_task,
        "--weights",
        "random",
        "--results",
        tmp_path / "r",
    )
    run(*args)
    my_task.write_text(my_task.read_text().replace("epochs = 2", "epochs = 3"))
    run(*args)
    table = pd.read_csv(tmp_path / "r" / "leaderboard.csv")
    assert table["variant"].fillna("").tolist() == [
        "",
        "mine finetune: epochs=2",
    ]  # the newest is the main row


def test_a_task_of_another_image_size_is_not_compared_unmarked(run, my_task, tmp_path):
    args = ("run", "-p", "knn", "-t", my_task, "--weights", "random", "--results", tmp_path / "r")
    run(*args, "-m", "test_vit")
    my_task.write_text(my_task.read_text().replace("size = 32", "size = 64"))
    run(*args, "-m", "test_vit2")
    table = pd.read_csv(tmp_path / "r" / "leaderboard.csv")
    assert dict(zip(table["model"], table["variant"].fillna(""), strict=True)) == {
        "test_vit": "mine knn: image_size=32",
        "test_vit2": "",
    }


def test_seeds_are_averaged(run, tmp_path):
    run("run", "-m", "test_vit", "-t", "digits", "-p", "knn", "--seed", 0, "--seed", 1, "--results", tmp_path)
    values = [record["scores"]["top1"]["value"] for record in all_records(tmp_path)]
    assert len(set(values)) == 2
    table = pd.read_csv(tmp_path / "leaderboard.csv")
    assert table["digits knn"][0] == pytest.approx(np.mean(values))
    assert table["digits knn high"][0] - table["digits knn"][0] == pytest.approx(np.std(values, ddof=1))
    assert "(2 seeds)" in (tmp_path / "leaderboard.md").read_text()


def test_older_versions_are_left_out_and_counted(copied, run):
    record = records(copied)["digits", "knn"]
    record["identity"]["task"]["version"] = 0
    record["run_id"] = digest(record["identity"])
    (copied / "runs" / f"{record['run_id']}.json").write_text(json.dumps(record))
    run("report", "--results", copied)
    markdown = (copied / "leaderboard.md").read_text()
    assert "1 result of older versions of task, metric, protocol or architecture is omitted" in markdown


def test_a_model_that_cannot_take_the_size_fails_its_own_runs_only(run, tmp_path):
    args = ("run", "-m", "test_vit", "-m", "inception_v3", "-t", "digits", "-p", "knn")
    said = run(*args, "--results", tmp_path, code=1).output
    assert "1 run failed" in said and "inception_v3 cannot be run for images of 32 x 32 pixels" in said
    assert pd.read_csv(tmp_path / "leaderboard.csv")["model"].tolist() == ["test_vit"]


def test_one_model_under_two_names_is_one(run, tmp_path):
    args = ("run", "-m", "mixmim-b", "-m", "mixmim_base", "-t", "digits", "--weights", "random", "--dry-run")
    said = run(*args, "--results", tmp_path).output
    assert [(row[0], row[4]) for row in planned(said)] == [("mixmim-b", "linear"), ("mixmim-b", "finetune")]


def test_seeds_of_what_is_not_random_are_one_run(run, my_task, tmp_path):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "trained.pth")
    args = (*MINE, "-p", "finetune", "-t", my_task, "--weights", tmp_path / "trained.pth", "--seed", 0)
    said = run(*args, "--seed", 1, "--dry-run", "--results", tmp_path / "r").output
    rows = planned(said)
    assert [row[4] for row in rows] == ["knn", "finetune", "finetune"]


def test_two_files_of_one_name_are_two_models(run, my_task, tmp_path):
    values = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        (tmp_path / str(seed)).mkdir()
        path = tmp_path / str(seed) / "best.pth"
        torch.save(timm.create_model("test_vit").state_dict(), path)
        run(*MINE, "-t", my_task, "--weights", path, "--results", tmp_path / "r")
        values.append(pd.read_csv(tmp_path / "r" / "leaderboard.csv")["weights"].tolist())
    assert len(values[1]) == 2 and all(re.fullmatch(r"best\.pth \([0-9a-f]{8}\)", name) for name in values[1])


@pytest.mark.parametrize("start", [forked, pytest.param(commanded, marks=pytest.mark.slow)])
def test_two_processes_share_one_results_folder(finished, costs, tmp_path, start):
    results = tmp_path / "results"
    if start is forked:
        costs.lend(results)
    logs = [tmp_path / "first", tmp_path / "second"]
    children = [start(*QUICK, "--results", results, log=log) for log in logs]
    assert [child.wait() for child in children] == [0, 0], [log.read_text() for log in logs]
    ours = {key: record["scores"] for key, record in records(results).items()}
    theirs = {key: record["scores"] for key, record in records(finished.results).items()}
    assert ours == {key: theirs[key] for key in ours} and len(ours) == 2


# -- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("-m", "mixmim-bb"), "no model 'mixmim-bb'; did you mean mixmim-b"),
        (("-m", "vit_base_patch16_225"), "did you mean vit_base_patch16_224"),
        (("-t", "digit"), "no task 'digit'; did you mean digits"),
        (("-t", "none.toml"), "none.toml: no such file"),
        (("-p", "liner"), "no protocol 'liner' for classification tasks; did you mean linear"),
        (("-s", "embed"), "no suite 'embed'; did you mean embedded"),
        (("--preset", "papr"), "no preset 'papr'; did you mean paper"),
        (("--weights", "none.pth"), "mixmim-b: weights none.pth: no such file"),
        (("--device", "cuda:9"), "device 'cuda:9' cannot be used"),
        (("--seed", "-1"), "Invalid value for '--seed'"),
        (("--precision", "float8"), "Invalid value for '--precision'"),
    ],
)
def test_wrong_options_bring_the_nearest_right_one(run, tmp_path, args, told):
    said = run("run", *args, "--results", tmp_path, code=2).output
    assert told in said.replace("\n", " ")
    assert "Traceback" not in said


def test_a_results_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    said = run(*QUICK, "--results", tmp_path / "file" / "results", code=2).output
    assert "results cannot be written" in said and "--results" in said


def test_a_report_of_nothing(run, tmp_path):
    assert "no results folder" in run("report", "--results", tmp_path / "none", code=2).output


def test_without_data_the_embedded_suite_runs_and_says_what_to_do(run, tmp_path):
    said = run("run", "-m", "test_vit", "-p", "knn", "--dry-run", "--results", tmp_path).output
    assert "'embedded' suite runs" in said and "--data-root" in said and "ImageNet" in said
    assert "digits" in said and "mnist5k" in said
