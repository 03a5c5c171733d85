"""Shards of a plan: disjoint, complete, balanced, the same everywhere; and their results, put together."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixmim_bench.errors import BenchError
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.shards import Load, Shard, divide, items_of, work_of

ROOT = Path(__file__).parent.parent
ARGS = ("run", "-m", "test_vit", "--weights", "random", "-p", "knn", "-p", "linear")

EXTRACTIONS = {"a": 40, "b": 7, "c": 1000, "d": 3}  # multiply-adds, by key
plans = st.lists(
    st.tuples(st.integers(0, 500), st.sets(st.sampled_from(sorted(EXTRACTIONS)), max_size=2)), max_size=25
).map(
    lambda runs: [
        Load(f"run{i:02d}", own, {key: EXTRACTIONS[key] for key in keys})
        for i, (own, keys) in enumerate(runs)
    ]
)


@given(plan=plans, count=st.integers(1, 9), random=st.randoms(use_true_random=False))
def test_shards_are_disjoint_complete_balanced_and_independent_of_order(plan, count, random):
    shards = divide(plan, count)
    found = [load.run_id for items in shards for item in items for load in item]
    assert sorted(found) == [load.run_id for load in plan] and len(shards) == count
    works = [sum(work_of(item) for item in items) for items in shards]
    largest = max((work_of(item) for items in shards for item in items), default=0)
    assert max(works) - min(works) <= largest
    again = random.sample(plan, len(plan))
    assert divide(again, count) == shards


@given(works=st.lists(st.integers(0, 60), min_size=1, max_size=7), count=st.integers(2, 3))
def test_the_longest_shard_is_within_the_bound_of_lpt(works, count):
    """Graham 1969: at most 4/3 - 1/(3N) of the best division, which is found here by trying all."""
    plan = [Load(f"run{i}", work) for i, work in enumerate(works)]
    longest = max(sum(work_of(item) for item in items) for items in divide(plan, count))
    best = min(
        max(sum(w for w, k in zip(works, places, strict=True) if k == shard) for shard in range(count))
        for places in itertools.product(range(count), repeat=len(works))
    )
    assert 3 * count * longest <= (4 * count - 1) * best


def test_runs_stay_with_their_extraction_unless_a_split_saves_more_than_it_repeats():
    probes = [Load(f"probe{i}", 0, {"features": 900}) for i in range(4)]
    others = [Load(f"other{i}", 300) for i in range(3)]
    assert sorted(map(len, items_of([*probes, *others], 4))) == [1, 1, 1, 4]
    heavy = [Load(f"heavy{i}", 500, {"features": 100}) for i in range(4)]  # 2,100 together
    assert sorted(map(len, items_of(heavy, 2))) == [2, 2]  # 1,100 each
    assert sorted(map(len, items_of(heavy, 1))) == [4]
    chain = [Load("x", 1, {"p": 5}), Load("y", 1, {"p": 5, "q": 5}), Load("z", 1, {"q": 5})]
    assert [len(item) for item in items_of(chain, 1)] == [3] and work_of(chain) == 13


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "1/0", "-1/3", "1/3/5", "a/b", "1.0/2", "1/"])
def test_a_wrong_shard_says_what_a_right_one_is(run, text, tmp_path):
    with pytest.raises(BenchError, match="must be I/N with I from 1 to N, such as 1/8"):
        Shard.parse(text)
    said = run(*ARGS, f"--shard={text}", "--results", tmp_path, code=2).output
    assert f"--shard {text}: must be I/N" in said and ("counted from 1" in said) == (text == "0/3")


def rows_of(run, *args):
    said = run(*args, "--dry-run", "--json").stdout
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def test_shards_do_not_depend_on_what_is_finished_or_cached(run, my_task, tmp_path):
    args = (*ARGS, "-t", my_task, "-t", "digits", "--seed", 0, "--seed", 1, "--results", tmp_path / "r")
    before = [[row["run_id"] for row in rows_of(run, *args, "--shard", f"{i}/3")] for i in (1, 2, 3)]
    whole = [row["run_id"] for row in rows_of(run, *args)]
    assert sorted(itertools.chain(*before)) == sorted(whole) and len(set(whole)) == 8
    run(*args, "--shard", "2/3")
    assert {record.run_id for record in RunStore(tmp_path / "r").records()} == set(before[1])
    for path in (tmp_path / "images").rglob("*.png"):
        os.utime(path, (1e9, 1e9))  # as on another machine
    after = [[row["run_id"] for row in rows_of(run, *args, "--shard", f"{i}/3")] for i in (1, 2, 3)]
    assert after == before
    said = run(*args, "--shard", "2/3").output
    assert f"{len(before[1])} of {len(before[1])} runs finished already" in said
    assert re.search(r"Shard 2/3 of plan [0-9a-f]{8}: \d of 8 runs, \d+% of the work \(shards from ", said)
    of = {row["run_id"]: (row["task"], row["seed"]) for row in rows_of(run, *args)}
    for ids in before:  # both protocols of a network and task read the same features
        assert all(sum(of[other] == of[one] for other in ids) == 2 for one in ids)


def test_a_shard_without_runs_ends_well(run, tmp_path):
    args = ("run", "-m", "test_vit", "-t", "digits", "-p", "knn", "--results", tmp_path / "r")
    counts = [len(rows_of(run, *args, "--shard", f"{i}/2")) for i in (1, 2)]
    assert sorted(counts) == [0, 1]
    assert "0 of 1 run" in run(*args, "--shard", f"{counts.index(0) + 1}/2").output


def scores(results):
    return {record.run_id: record.scores for record in RunStore(results).records()}


def test_merged_shards_are_the_whole_bit_for_bit(run, my_task, tmp_path):
    """Each with a results folder and a cache of its own, as on machines that share nothing."""
    args = (*ARGS, "-t", my_task, "--seed", 0, "--seed", 1, "--seed", 2)
    folders = [tmp_path / f"results{i}" for i in (1, 2, 3)]
    for i, folder in enumerate(folders, 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MIXMIM_BENCH_CACHE", str(tmp_path / f"cache{i}"))
            run(*args, "--shard", f"{i}/3", "--results", folder)
    run("results", "merge", *folders, "--results", tmp_path / "merged")
    run(*args, "--results", tmp_path / "whole")
    assert scores(tmp_path / "merged") == scores(tmp_path / "whole")
    assert len(scores(tmp_path / "whole")) == 6
    assert "6 of 6 runs finished already" in run(*args, "--results", tmp_path / "merged").output


# -- the script of the documentation ------------------------------------------------------------------


@pytest.fixture
def array_job(tmp_path, my_task):
    """The Slurm script of the docs, of three tasks, in a folder with a suite file."""
    page = (ROOT / "docs" / "howto" / "cluster.md").read_text()
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", page, re.DOTALL)
    assert script.count("1-8") == 1 and script.count("/8") == 1
    (tmp_path / "suite.sbatch").write_text(script.replace("1-8", "1-3").replace("/8", "/3"))
    (tmp_path / "suite.toml").write_text(
        f'schema = 1\nmodels = ["test_vit"]\nweights = "random"\ntasks = ["{my_task.name}"]\n'
        'protocols = ["knn", "linear"]\nseeds = [0, 1, 2]\n'
    )
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "mixmim-bench"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m mixmim_bench.cli "$@"\n')
    command.chmod(0o755)
    return tmp_path


# what Slurm does with the script, for as many tasks as the second argument says
SCHEDULER = """\
array=${2:-$(sed -n 's/^#SBATCH --array=//p' "$1")}
for id in $(seq ${array%-*} ${array#*-}); do
  SLURM_ARRAY_TASK_ID=$id bash "$1" > "task$id.log" 2>&1 &
  echo $! > "task$id.pid"
done
wait
"""


def sbatch(folder, *array):
    paths = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": paths, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = ["bash", "-c", SCHEDULER, "scheduler", "suite.sbatch", *array]
    return subprocess.Popen(command, cwd=folder, env=environment)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_an_array_job_that_loses_a_task_is_completed_by_that_task_alone(array_job, costs, run):
    costs.lend(array_job / "results")
    job, log = sbatch(array_job), array_job / "task2.log"
    until = time.monotonic() + 200
    while not (log.exists() and "[1/2]" in log.read_text()) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(int((array_job / "task2.pid").read_text()), signal.SIGKILL)
    assert job.wait(300) == 0
    done = scores(array_job / "results")
    assert len(done) in (4, 5), [path.read_text() for path in array_job.glob("task*.log")]
    assert sbatch(array_job, "2-2").wait(300) == 0
    merged = scores(array_job / "results")
    assert len(merged) == 6 and {run_id: merged[run_id] for run_id in done} == done
    whole = array_job / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXMIM_BENCH_CACHE", str(array_job / "other cache"))
        patch.chdir(array_job)
        run("run", "suite.toml", "--results", whole)
    assert scores(whole) == merged
