"""Jobs of several processes on this machine, connected by gloo, against one process."""

import contextlib
import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from children import launch, start

from mixmim_bench import processes
from mixmim_bench.training import trainer

TESTS = Path(__file__).parent


def train(count, out, **options):
    """Run tests/job.py and return what the processes saved."""
    settings = [f"{key}={str(value).lower()}" for key, value in options.items()]
    ended = launch(count, TESTS / "job.py", out, *settings)
    assert all(status == 0 for status, _ in ended), ended
    return [torch.load(out / f"process{rank}.pt") for rank in range(count)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(1, tmp_path_factory.mktemp("alone") / "out")[0]


def assert_same(done, alone):
    assert done["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for name, values in alone["weights"].items():
        torch.testing.assert_close(done["weights"][name], values, atol=1e-4, rtol=1e-3)
    assert torch.equal(done["digests"], alone["digests"])


@pytest.mark.parametrize(
    "options", [{"at_once": 4}, pytest.param({"sharded": True, "at_once": 8}, marks=pytest.mark.slow)]
)
def test_two_processes_train_like_one(alone, tmp_path, options):
    """The same losses and weights at the same batch, also where the pieces of a share are uneven."""
    expected = dict(alone)
    if options.get("sharded"):
        expected = train(1, tmp_path / "one", **{**options, "sharded": False, "ema": False})[0]
    both = train(2, tmp_path / "out", **options)
    for done in both:
        assert_same(done, expected)
    assert all(torch.equal(both[0]["weights"][n], both[1]["weights"][n]) for n in both[0]["weights"])


@pytest.mark.parametrize(("images", "count", "sizes"), [(7, 4, (2, 1)), (8, 4, (2, 2)), (30, 4, (8, 7))])
def test_shares_differ_by_one_at_most(monkeypatch, images, count, sizes):
    monkeypatch.setenv("WORLD_SIZE", str(count))
    found = []
    for rank in range(count):
        monkeypatch.setenv("RANK", str(rank))
        share = processes.share(images)
        found.append(share.stop - share.start)
    assert sum(found) == images and (max(found), min(found)) == sizes == trainer.shares(images, 1)
    for at_once in range(1, sizes[0] + 1):
        pieces = max(1, min(-(-sizes[0] // at_once), sizes[1]))
        assert all(len(trainer.in_step(share, pieces)) == pieces for share in found)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_a_job_that_is_terminated_continues(tmp_path, sharded):
    whole = train(2, tmp_path / "whole", sharded=sharded)[0]
    settings = [f"sharded={str(sharded).lower()}", "stop=7"]
    ended = launch(2, TESTS / "job.py", tmp_path / "out", *settings)
    assert [status for status, _ in ended] == [143, 143], ended
    done = train(2, tmp_path / "out", sharded=sharded)[0]
    assert done["losses"] == whole["losses"]
    assert all(torch.equal(done["weights"][name], whole["weights"][name]) for name in whole["weights"])
    rows = (tmp_path / "out" / "logs" / "training.csv").read_text().splitlines()
    assert [int(row.split(",")[0]) for row in rows[1:]] == list(range(10))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_kills_at_random_moments_lose_nothing(tmp_path, count):
    """SIGKILL of all processes, at any time after the first checkpoint, also while one is written."""
    whole = train(count, tmp_path / "whole", n=600, at_once=4)[0]
    random = np.random.default_rng(int(time.time()))
    for _ in range(3):
        started = start(count, TESTS / "job.py", tmp_path / "out", "n=600", "at_once=4")
        until = time.monotonic() + 60
        while not list((tmp_path / "out").glob("checkpoints/*.pt")) and time.monotonic() < until:
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started[0].wait(random.uniform(0, 8))
        for process in started:
            process.kill()
            process.communicate()
        if (tmp_path / "out" / "process0.pt").exists():
            break
    done = train(count, tmp_path / "out", n=600, at_once=4)[0]
    assert done["losses"] == whole["losses"]
    assert all(torch.equal(done["weights"][name], whole["weights"][name]) for name in whole["weights"])


def test_a_worker_that_dies_ends_the_job_with_its_reason(tmp_path):
    (first, output), (second, _) = launch(2, TESTS / "job.py", tmp_path / "out", "die=3")
    assert first == 1 and second == 7
    assert "ProcessLost: process 0 of 2 lost another one" in output
    assert not (tmp_path / "out" / "process0.pt").exists()


@pytest.mark.parametrize("options", [[], pytest.param(["--fsdp"], marks=pytest.mark.slow)])
def test_the_suite_gives_the_same_scores_in_two_processes(costs, tmp_path, options):
    """Only the main process writes and shows progress; frozen protocols run in it alone."""
    suite = [
        TESTS.parent / "run_suite.py", "-m", "test_vit", "-t", "digits", "-p", "linear", "-p", "finetune",
        "-p", "linear-sgd", "--threads", "1", "--batch-size", "16",
        *(f"--set=finetune.{text}" for text in ("epochs=1", "drop_path=0.0", "mixup=0.0", "cutmix=0.0")),
        "--set=finetune.base_lr=1e-2", "--set=linear-sgd.epochs=2", "--set=linear-sgd.warmup_epochs=1",
        "--set=linear-sgd.norm=none", "--no-report",
    ]  # fmt: skip
    scores = {}
    for count in (1, 2):
        results = tmp_path / f"results{count}"
        costs.lend(results)
        ended = launch(
            count,
            *suite,
            *options[: count - 1],
            "--results",
            results,
            real=count == 2 and not options,
            MIXMIM_BENCH_CACHE=str(tmp_path / f"cache{count}"),
        )
        assert all(status == 0 for status, _ in ended), ended
        if count == 2:
            assert not ended[1][1].strip(), ended[1][1]
        records = [json.loads(path.read_text()) for path in sorted((results / "runs").glob("*.json"))]
        assert {record["provenance"]["processes"] for record in records} == {count}
        scores[count] = {record["protocol_title"]: record["scores"]["top1"] for record in records}
        assert all(score["n"] == 500 for score in scores[count].values())  # of 2 x 250
        assert len(list((results / "logs").glob("*/fine-tuning.csv"))) == 1
    assert scores[1].keys() == scores[2].keys() and len(scores[1]) == 3
    for name, score in scores[1].items():
        assert scores[2][name]["value"] == pytest.approx(score["value"], abs=0.01), name
