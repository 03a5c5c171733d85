"""Disks that are full, files that may not grow, and results of other versions in a shared folder."""

import json
import resource
import shutil
import subprocess
from contextlib import contextmanager

import pytest
from children import Forked

from mixmim_bench.features.store import FeatureStore
from mixmim_bench.suite.records import RunStore

ARGS = ("run", "--report", "-m", "test_vit", "--weights", "random", "-p", "knn", "-p", "linear")


@contextmanager
def small_disk(folder, kb):
    """A file system of so many kB, and a function that enlarges it."""
    folder.mkdir()
    if shutil.which("mount") is None or mount("-t", "tmpfs", "-o", f"size={kb}k", "tmpfs", folder).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield lambda: mount("-o", "remount,size=64m", folder).check_returncode()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def mount(*args):
    return subprocess.run(["mount", *map(str, args)], capture_output=True)


def scores(results):
    return {record.run_id: record.scores for record in RunStore(results).finished().values()}


@pytest.fixture
def expected(run, my_task, tmp_path, monkeypatch):
    """The scores with enough space."""
    with monkeypatch.context() as patch:
        patch.setenv("MIXMIM_BENCH_CACHE", str(tmp_path / "large cache"))
        run(*ARGS, "-t", my_task, "--results", tmp_path / "large")
    return scores(tmp_path / "large")


# nothing of an entry fits; its chunk does; its chunk and its features, but not its rows
@pytest.mark.parametrize("kb", [12, *(pytest.param(kb, marks=pytest.mark.slow) for kb in (28, 44)), 52])
def test_a_full_disk_fails_runs_with_the_reason_and_later_they_are_right(
    run, my_task, tmp_path, monkeypatch, expected, kb
):
    with small_disk(tmp_path / "disk", kb) as enlarge:
        monkeypatch.setenv("MIXMIM_BENCH_CACHE", str(tmp_path / "disk" / "cache"))
        args = (*ARGS, "-t", my_task, "--results", tmp_path / "r")
        said = run(*args, code=1).output
        assert "2 runs failed" in said and "Traceback" not in said
        failed = RunStore(tmp_path / "r").records()
        assert len(failed) == 2 and not scores(tmp_path / "r")
        for record in failed:
            assert record.error.startswith("BenchError: cannot cache features in ")
            assert "No space left on device" in record.error and "$MIXMIM_BENCH_CACHE" in record.error
        assert not list((tmp_path / "disk").rglob("*.tmp"))
        assert [each for each in FeatureStore().entries() if each.manifest() and each.damage()] == []
        enlarge()
        run(*args)
        assert scores(tmp_path / "r") == expected


@pytest.mark.parametrize("kb", [8, *(pytest.param(kb, marks=pytest.mark.slow) for kb in (16, 40)), 24])
def test_a_full_disk_of_results_ends_the_suite_with_the_reason(run, my_task, tmp_path, expected, kb):
    with small_disk(tmp_path / "disk", kb) as enlarge:
        args = (*ARGS, "-t", my_task, "--results", tmp_path / "disk" / "r")
        said = run(*args, code=2).output
        assert f"results cannot be written to {tmp_path / 'disk' / 'r'}: No space left on device" in said
        assert "Traceback" not in said and not list((tmp_path / "disk").rglob("*.tmp"))
        store = RunStore(tmp_path / "disk" / "r")
        broken = []
        assert all(record.run_id in expected and not record.error for record in store.records(broken))
        assert not broken and scores(store.folder).items() <= expected.items()
        enlarge()
        run(*args)
        assert scores(store.folder) == expected


def limited(size, *args):
    """Run a command whose files may not be larger."""
    from mixmim_bench.cli import main

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    main([str(arg) for arg in args])


@pytest.mark.parametrize(("size", "status"), [(9_000, 1), (200, 2)])
def test_files_that_may_not_grow_fail_like_a_full_disk(run, my_task, tmp_path, expected, costs, size, status):
    """Without root: 14.6 kB is a chunk, and 0.7 kB what it was made by."""
    results, log = tmp_path / "r", tmp_path / "log"
    if status == 1:
        costs.lend(results)
    args = (*ARGS, "-t", my_task, "--results", results)
    ended = Forked(limited, size, *args, log=log).wait()
    said = log.read_text()
    assert ended in (1, 2) and "Traceback" not in said, said
    if status == 1:
        assert "cannot cache features in " in said and "File too large" in said
    assert scores(results) == {}
    run(*args)
    assert scores(results) == expected


def test_what_another_version_has_written_is_kept_and_not_counted(run, my_task, tmp_path, expected):
    """In a shared folder: records and costs of a later schema, under the same names."""
    results = RunStore(shutil.copytree(tmp_path / "large", tmp_path / "r"))
    path = min(results.runs.glob("*.json"))
    later = json.dumps({**json.loads(path.read_text()), "schema": 99, "surplus": [1]})
    path.write_text(later)
    (results.costs / "0123456789abcdef.json").write_text('{"schema": 99}')
    said = run(*ARGS, "-t", my_task, "--results", results.folder).output
    assert f"Run counts as unfinished: {path} (" in said and "[1/1] test_vit · mine" in said
    assert scores(results.folder) == expected
    assert path.with_name(f"{path.name}.unread").read_text() == later
    assert (results.costs / "0123456789abcdef.json").read_text() == '{"schema": 99}'
