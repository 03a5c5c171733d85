"""A result belongs to the bytes of its images: what changes at equal size is run again."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mixmim_bench.cache import cache_folder
from mixmim_bench.suite.records import RunStore

ARGS = ("run", "-m", "test_vit", "--weights", "random", "-p", "knn")


@pytest.fixture
def bitmaps(my_task):
    """The user's task with uncompressed images: all files of one size."""
    for path in (my_task.parent / "images").rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    return my_task


def turn_around(task, part="val"):
    """Replace each image by its negative: the same names and sizes, other bytes."""
    for path in (task.parent / "images" / part).rglob("*.bmp"):
        size = path.stat().st_size
        Image.open(path).point(lambda value: 255 - value).save(path)
        assert path.stat().st_size == size
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


def score(results):
    (record,) = RunStore(results).records()
    return record.scores["top1"]["value"]


def test_images_with_other_bytes_are_run_again_and_the_old_result_is_kept(bitmaps, run, tmp_path):
    results = tmp_path / "r"
    run(*ARGS, "-t", bitmaps, "--results", results)
    before, (record,) = score(results), RunStore(results).records()
    assert "1 of 1 run finished already" in run(*ARGS, "-t", bitmaps, "--results", results).output
    turn_around(bitmaps)
    said = run(*ARGS, "-t", bitmaps, "--results", results).output
    assert "the images differ from those of the result; running again" in said
    assert "finished already" not in said and score(results) != before
    old = results / "runs" / f"{record.run_id}.json.of-images-{record.data_bytes}"
    assert json.loads(old.read_text())["scores"]["top1"]["value"] == before
    assert old.with_name(f"{record.run_id}.npz.of-images-{record.data_bytes}").is_file()
    assert "1 of 1 run finished already" in run(*ARGS, "-t", bitmaps, "--results", results).output


def test_two_folders_of_one_name_have_results_of_their_own(bitmaps, run, tmp_path):
    other = tmp_path / "other" / bitmaps.name
    shutil.copytree(bitmaps.parent / "images", other.parent / "images")
    shutil.copy(bitmaps, other)
    turn_around(other)
    turn_around(other, "train")
    run(*ARGS, "-t", bitmaps, "--results", tmp_path / "r")
    said = run(*ARGS, "-t", other, "--results", tmp_path / "r").output
    assert "running again" in said and "finished already" not in said


def test_touched_files_are_hashed_and_found_to_be_the_same(bitmaps, run, tmp_path):
    results = tmp_path / "r"
    run(*ARGS, "-t", bitmaps, "--results", results)
    for path in (bitmaps.parent / "images").rglob("*.bmp"):
        os.utime(path)
    said = run(*ARGS, "-t", bitmaps, "--results", results).output
    assert "hashing the images" in said and "1 of 1 run finished already" in said
    said = run(*ARGS, "-t", bitmaps, "--results", results).output
    assert "hashing" not in said  # seen with these times now


def test_another_machine_hashes_the_images_once(bitmaps, run, tmp_path):
    results = tmp_path / "r"
    run(*ARGS, "-t", bitmaps, "--results", results)
    shutil.rmtree(cache_folder() / "seen")
    for _ in range(2):
        said = run(*ARGS, "-t", bitmaps, "--results", results).output
        assert "1 of 1 run finished already" in said
    assert "hashing" not in said
    (seen,) = (cache_folder() / "seen").iterdir()
    seen.write_text("[" * 100_000)  # damaged: hashed again
    assert "hashing" in run(*ARGS, "-t", bitmaps, "--results", results).output


def test_every_protocol_digests_the_same_bytes(bitmaps, run, tmp_path):
    args = (*ARGS, "-p", "finetune", "-p", "linear", "-t", bitmaps, "--results", tmp_path / "r")
    run(*args)
    found = RunStore(tmp_path / "r").records()
    assert len(found) == 3 and len({record.data_bytes for record in found} - {""}) == 1
    assert all(record.counts["test_in_train_or_val"] == 0 for record in found)


def test_a_result_is_not_lost_where_images_cannot_be_read_again(bitmaps, run, tmp_path, monkeypatch):
    """Only the count of duplicates needs the bytes of images that a run did not read."""

    def refuse(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("mixmim_bench.protocols.workbench.Workbench.digests", refuse)
    run(*ARGS, "-t", bitmaps, "--results", tmp_path / "r")
    (record,) = RunStore(tmp_path / "r").records()
    assert record.scores["top1"]["value"] > 0 and record.data_bytes == ""
    assert any("duplicate images were not counted" in note for note in record.notes)


def test_a_finetuning_reads_no_image_a_second_time(bitmaps, run, tmp_path, monkeypatch):
    hashed = []

    def count(part, rows, advance):
        hashed.append(len(rows))
        return hash_images(part, rows, advance)

    from mixmim_bench.data.hashing import hash_images

    monkeypatch.setattr("mixmim_bench.protocols.workbench.hash_images", count)
    args = ("run", "-m", "test_vit", "--weights", "random", "-p", "finetune")
    run(*args, "-t", bitmaps, "--results", tmp_path / "r")
    assert sum(hashed) < 8  # what did not fill a batch of 8 in the first epoch
    assert Path(tmp_path / "r" / "runs").is_dir()
