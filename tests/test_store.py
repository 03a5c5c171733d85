"""The feature store: found by everything that made it, whole or not at all, safe for two."""

import dataclasses
import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from children import PATIENCE_S, Event, Stop, commanded, forked, meet
from conftest import write_digits
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_training import PREPROCESSING, TINY, Quiet

from mixmim_bench.data.dataset import open_task
from mixmim_bench.errors import BenchError, UnreadableImages
from mixmim_bench.features import store as store_module
from mixmim_bench.features.store import FeatureStore, Piece, filling
from mixmim_bench.machine import Machine
from mixmim_bench.protocols.workbench import Shelf, Workbench
from mixmim_bench.specs import RANDOM, Weights, digest
from mixmim_bench.suite.plan import ModelChoice, TaskChoice, choose_protocol, plan
from mixmim_bench.suite.taskfile import read_task

SMALL = dataclasses.replace(PREPROCESSING, size=(32, 32), crop_pct=1.0)


def bench_of(
    task, model=TINY, weights=RANDOM, preprocessing=SMALL, precision="float32", seed=0, protocol="knn"
):
    """Make a workbench on a task of the user's, as the suite does, and its splits."""
    data = open_task(task)
    run = plan(
        [ModelChoice(spec=model, weights=weights, preprocessing=preprocessing)],
        [
            TaskChoice(
                spec=task,
                data=data.source,
                counts=data.counts,
                protocols=[choose_protocol(task, protocol, "auto")],
            )
        ],
        [seed],
        precision,
    )[0].run
    bench = Workbench(run, Machine(device="cpu", precision=precision, batch_size=7), Quiet(), 0.1, Shelf())
    return bench, data.splits


def extracted(bench):
    """How many images went through the backbone."""
    return sum(done for done, _ in bench.stages.counted.values())


def weights_file(folder, seed):
    """Save weights of the small model under the same name, whatever they are."""
    torch.manual_seed(seed)
    network = timm.create_model(TINY.arch, num_classes=0, img_size=32, **TINY.kwargs)
    path = folder / "weights.pth"
    torch.save(network.state_dict(), path)
    return Weights(kind="file", name="weights.pth", path=str(path), sha256=digest([seed]))


# -- found by what made it ----------------------------------------------------------------------------


def test_what_was_extracted_is_read_again(my_task):
    bench, splits = bench_of(read_task(my_task))
    first = bench.features(splits["train"])
    assert extracted(bench) == len(splits["train"].part) == 48
    again, others = bench_of(read_task(my_task))
    second = again.features(others["train"])
    assert extracted(again) == 0
    assert isinstance(second.x, np.memmap)
    assert np.array_equal(first.x, second.x) and first.ids.tolist() == second.ids.tolist()
    assert second.x.shape == (48, 192) and second.digests.shape == (48, 16)


def test_several_layers_take_one_pass_and_only_what_lacks_is_extracted(my_task):
    bench, splits = bench_of(read_task(my_task))
    both = bench.features_of_layers(splits["val"], ["own", "stage1"])
    assert extracted(bench) == 12
    more, splits = bench_of(read_task(my_task))
    found = more.features_of_layers(splits["val"], ["stage1", "own"])
    assert extracted(more) == 0
    assert all(np.array_equal(found[layer].x, both[layer].x) for layer in both)
    assert more.features(splits["val"], "stage2").x.shape == (12, 48)
    assert extracted(more) == 12


def change_nothing(_, __):
    pass


def change_weights(folder, arguments):
    arguments["weights"] = weights_file(folder, 1)  # the same path and name


def change_normalisation(_, arguments):
    arguments["preprocessing"] = dataclasses.replace(SMALL, mean=(0.5, 0.5, 0.51))


def change_crop(_, arguments):
    arguments["preprocessing"] = dataclasses.replace(SMALL, crop_pct=0.9)


def change_interpolation(_, arguments):
    arguments["preprocessing"] = dataclasses.replace(SMALL, interpolation="bilinear")


def change_size(_, arguments):
    arguments["preprocessing"] = dataclasses.replace(SMALL, size=(64, 64))
    arguments["weights"] = RANDOM


def change_architecture(_, arguments):
    arguments["model"] = dataclasses.replace(TINY, kwargs={**TINY.kwargs, "depths": [1, 1, 1, 2]})
    arguments["weights"] = RANDOM


def change_precision(_, arguments):
    arguments["precision"] = "bfloat16"


def change_time(folder, _):
    path = next((folder / "images" / "train").rglob("*.png"))
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def change_image(folder, _):
    for path in (folder / "images" / "train").rglob("*.png"):
        kept = path.stat()
        with Image.open(path) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
        os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns + 1))


def change_label(folder, _):
    first, second = sorted((folder / "images" / "train").iterdir())[:2]
    (folder / "other").mkdir()
    for source, target in (
        (first, folder / "other" / "a"),
        (second, first),
        (folder / "other" / "a", second),
    ):
        source.rename(target)


def change_name(folder, _):
    path = next((folder / "images" / "train").rglob("*.png"))
    path.rename(path.with_name("renamed.png"))


def change_skipping(folder, _):
    path = folder / "mine.toml"
    path.write_text(path.read_text().replace("[data]", "[data]\nskip_unreadable = true"))


CHANGES = [value for name, value in dict(globals()).items() if name.startswith("change_")]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_any_change_misses(my_task, monkeypatch, change):
    folder = my_task.parent
    arguments = {"weights": weights_file(folder, 0)}
    bench, splits = bench_of(read_task(my_task), **arguments)
    bench.features(splits["train"])
    change(folder, arguments)
    again, others = bench_of(read_task(my_task), **arguments)
    features = again.features(others["train"])
    assert extracted(again) == (0 if change is change_nothing else len(others["train"].part))
    fresh, others = bench_of(read_task(my_task), **arguments)
    monkeypatch.setenv("MIXMIM_BENCH_CACHE", str(my_task.parent / "elsewhere"))
    assert np.array_equal(fresh.features(others["train"]).x, features.x)


def test_the_seed_of_random_weights_and_the_extractor_decide_too(my_task, monkeypatch):
    bench, splits = bench_of(read_task(my_task))
    bench.features(splits["val"])
    other, splits = bench_of(read_task(my_task), seed=1)
    other.features(splits["val"])
    assert extracted(other) == 12
    monkeypatch.setattr("mixmim_bench.features.keys.EXTRACTOR_VERSION", 99)
    newer, splits = bench_of(read_task(my_task))
    newer.features(splits["val"])
    assert extracted(newer) == 12


def test_the_code_of_a_users_own_model_decides_too(monkeypatch, tmp_path):
    module = tmp_path / "own_backbone.py"
    code = (
        "import timm\nfrom timm.models import register_model\n"
        "@register_model\ndef own_backbone_{}(pretrained=False, **kwargs):\n"
        "    return timm.create_model('test_vit', **kwargs)\n"
    )
    module.write_text(code.format("a"))
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_backbone  # noqa: F401 (registers the model)

    from mixmim_bench.features.keys import custom_code

    before = custom_code("own_backbone_a")
    module.write_text(code.format("a") + "# another pooling\n")
    assert before and custom_code("own_backbone_a") != before
    assert custom_code("test_vit") == custom_code("mixmim_base") == ""


INGREDIENTS = {
    "arch": st.sampled_from(["a", "b"]),
    "weights": st.fixed_dictionaries({"sha256": st.sampled_from(["0", "1"])}),
    "layer": st.sampled_from(["own", "stage1"]),
    "preprocessing": st.fixed_dictionaries(
        {"crop_pct": st.sampled_from([0.875, 1.0]), "mean": st.lists(st.floats(0, 1), max_size=2)}
    ),
    "images": st.sampled_from(["x", "y"]),
    "precision": st.sampled_from(["float32", "bfloat16"]),
    "extractor": st.integers(1, 2),
}


@given(st.fixed_dictionaries(INGREDIENTS), st.fixed_dictionaries(INGREDIENTS))
def test_two_entries_are_one_only_if_all_ingredients_are(first, second):
    store = FeatureStore(Path("nowhere"))
    one, other = store.entry(first, {"model": "a"}), store.entry(second, {"model": "b"})
    assert (one.key == other.key) == (first == second)


# -- whole or not at all ------------------------------------------------------------------------------


def piece(rows, layers=("own",), failures=()):
    values = {layer: np.outer(rows, [1.0, 2.0]).astype(np.float32) + len(layer) for layer in layers}
    digests = np.repeat(rows.astype(np.uint8)[:, None], 16, axis=1)
    return Piece(rows, values, digests, dict.fromkeys(failures, "broken"))


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 40),
    broken=st.sets(st.integers(0, 39), max_size=12),
    sizes=st.lists(st.integers(1, 13), min_size=1, max_size=6),
    stops=st.lists(st.integers(0, 40), max_size=3),
)
def test_whatever_the_batches_and_interruptions_the_rows_are_in_order(
    tmp_path_factory, n, broken, sizes, stops
):
    """Batches of any size, images that fail, and starts that break off anywhere."""
    entry = FeatureStore(tmp_path_factory.mktemp("store")).entry({"n": n}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "CHUNK_ROWS", 8)
        for stop in [*(min(stop, n) for stop in stops), n]:
            with filling({"own": entry}, n) as lacking:
                if lacking is None:
                    break
                row, turn = lacking.start, 0
                while row < stop:
                    rows = np.arange(row, min(row + sizes[turn % len(sizes)], n))
                    good = np.array([r for r in rows if r not in broken], dtype=np.int64)
                    lacking.add(piece(good, failures=[r for r in rows if r in broken]))
                    row, turn = row + len(rows), turn + 1
                if lacking.start == n:
                    lacking.finish()
    stored = entry.open()
    expected = np.array([row for row in range(n) if row not in broken], dtype=np.int64)
    assert stored.rows.tolist() == expected.tolist()
    if len(expected):
        assert np.array_equal(stored.x, piece(expected).values["own"])
        assert np.array_equal(stored.digests, piece(expected).digests)


def whole_entry(folder, n=20):
    entry = FeatureStore(folder).entry({"layer": "own", "extractor": 1}, {})
    with filling({"own": entry}, n) as lacking:
        lacking.add(piece(np.arange(n)))
        lacking.finish()
    return entry


@pytest.mark.parametrize("name", ["x.npy", "rows.npz", "whole.json", "made_by.json"])
@pytest.mark.parametrize("how", ["cut", "gone", "empty"])
def test_a_damaged_entry_is_never_read(tmp_path, name, how):
    entry = whole_entry(tmp_path)
    path = entry.folder / name
    path.unlink() if how == "gone" else path.write_bytes(path.read_bytes()[:-3] if how == "cut" else b"")
    if name == "made_by.json":  # says what it is, to people only
        assert entry.open().x.shape == (20, 2)
        return
    assert entry.manifest() is None
    with pytest.raises(BenchError, match="incomplete or damaged; rerun to extract them"):
        entry.open()
    assert whole_entry(tmp_path).open().x.shape == (20, 2)


def test_a_changed_byte_is_found_by_verifying(tmp_path):
    entry = whole_entry(tmp_path)
    assert entry.damage() == ""
    content = bytearray((entry.folder / "x.npy").read_bytes())
    content[-1] ^= 1
    (entry.folder / "x.npy").write_bytes(content)
    assert entry.damage() == "x.npy has changed since it was written"


def test_a_cut_chunk_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "CHUNK_ROWS", 8)
    entry = FeatureStore(tmp_path).entry({"layer": "own"}, {})
    with filling({"own": entry}, 30) as lacking:
        lacking.add(piece(np.arange(25)))
    chunks = sorted((entry.folder / "chunks").iterdir())
    assert [path.name for path in chunks] == ["000000000.npz", "000000008.npz", "000000016.npz"]
    chunks[1].write_bytes(chunks[1].read_bytes()[:-40])
    with filling({"own": entry}, 30) as lacking:
        assert lacking.start == 8
        with pytest.raises(ValueError, match="features of 22 images are missing"):
            lacking.finish()


def test_an_unreadable_image_fails_or_is_left_out_as_the_task_says(my_task):
    (my_task.parent / "images" / "val" / "digit 1" / "broken.png").write_bytes(b"no image")
    bench, splits = bench_of(read_task(my_task))
    with pytest.raises(UnreadableImages, match=r"1 of 31 images cannot be read: .*broken\.png"):
        bench.features(splits["test"])
    change_skipping(my_task.parent, {})
    bench, splits = bench_of(read_task(my_task))
    assert len(bench.features(splits["test"])) == 30 and bench.skipped["test"] == 1
    my_task.write_text(my_task.read_text().replace("skip_unreadable = true", ""))
    bench, splits = bench_of(read_task(my_task))
    with pytest.raises(UnreadableImages):
        bench.features(splits["test"])


def test_memory_of_a_second_reader_stays_on_the_disk(tmp_path):
    entry = whole_entry(tmp_path)
    assert isinstance(entry.open().x, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        entry.open().x[0] = 0.0


def test_a_cache_that_cannot_be_written_is_told(my_task, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MIXMIM_BENCH_CACHE", str(tmp_path / "file"))
    bench, splits = bench_of(read_task(my_task))
    with pytest.raises(BenchError, match=r"cannot cache features in .*set \$MIXMIM_BENCH_CACHE"):
        bench.features(splits["val"])


# -- killed, and two at once --------------------------------------------------------------------------


def write_many(folder, per_class, image):
    """Write a task of several chunks of images."""
    write_digits(folder / "images" / "train", per_class, classes=10)
    write_digits(folder / "images" / "val", per_class=4, classes=10, start=170)
    (folder / "many.toml").write_text(
        'schema = 1\nversion = 1\nkind = "classification"\ntitle = "Many"\nnum_classes = 10\n'
        f'metrics = ["top1"]\n[data]\nlayouts = ["folder:ImageFolder"]\nroot = "images"\n{image}'
        '[split]\ntrain = "train[:95%]"\nval = "train[95%:]"\ntest = "val"\n'
    )


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A folder with a task of two chunks."""
    write_many(tmp_path, per_class=65, image="[image]\nsize = 32\n")
    monkeypatch.setenv("MIXMIM_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def slow_many(tmp_path, monkeypatch):
    """A folder with a task that takes long enough to be killed in the middle of."""
    write_many(tmp_path, per_class=170, image="")
    monkeypatch.setenv("MIXMIM_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


def started(start, folder, results="results", **how):
    args = ("run", "-m", "test_vit", "-p", "knn", "--task", folder / "many.toml", "--weights", "random")
    args = (*args, "--batch-size", 16, "--no-report", "--results", folder / results)
    return start(*args, log=folder / f"{results}.log", **how)


def kept_features(folder):
    entries = FeatureStore(folder / "cache" / "features").entries()
    assert len(entries) == 3
    return {entry.about["role"]: np.array(entry.open().x) for entry in entries}


def check_features(folder, monkeypatch, start):
    """See that the features are whole, and those of a start without interruption."""
    features = folder / "cache" / "features"
    assert not list(features.rglob("chunks")) and not list(features.rglob("*.tmp"))
    monkeypatch.setenv("MIXMIM_BENCH_CACHE", str(folder / "other" / "cache"))
    assert started(start, folder, "straight").wait() == 0
    interrupted = kept_features(folder)
    for role, straight in kept_features(folder / "other").items():
        np.testing.assert_allclose(interrupted[role], straight, atol=1e-5)


def scores_in(results):
    (path,) = (results / "runs").glob("*.json")
    return json.loads(path.read_text())["scores"]


def test_killed_between_chunks_it_goes_on_at_the_chunk(many, costs, monkeypatch):
    costs.lend(many / "results")
    costs.lend(many / "straight")
    killed = started(forked, many, stop=Stop("after", "*/chunks/000000000.npz"))
    assert killed.wait() == -signal.SIGKILL
    (entry,) = FeatureStore(many / "cache" / "features").entries()
    first, second = (entry.folder / "chunks" / name for name in ("000000000.npz", "000000512.npz"))
    assert entry.about["role"] == "train" and entry.manifest() is None
    assert first.exists() and not second.exists()
    before = first.stat().st_mtime_ns
    killed = started(forked, many, stop=Stop("after", "*/rows.npz"))
    assert killed.wait() == -signal.SIGKILL
    assert first.stat().st_mtime_ns == before and second.exists()  # the first was not written again
    assert entry.manifest() is None
    assert started(forked, many).wait() == 0, (many / "results.log").read_text()
    check_features(many, monkeypatch, forked)


@pytest.mark.slow
def test_killed_while_extracting_it_goes_on_at_the_chunk(slow_many, monkeypatch):
    """SIGKILL at the moment when the second chunk is seen."""
    many = slow_many
    child = started(commanded, many)
    deadline = time.monotonic() + 120
    chunks = many / "cache" / "features"
    while not list(chunks.rglob("chunks/000000512.npz")) and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    entry = next(e for e in FeatureStore(chunks).entries() if e.about["role"] == "train")
    assert entry.manifest() is None and (entry.folder / "chunks" / "000000000.npz").exists()
    before = (entry.folder / "chunks" / "000000000.npz").stat().st_mtime_ns
    again = started(commanded, many)
    while entry.manifest() is None and again.poll() is None:
        chunk = entry.folder / "chunks" / "000000000.npz"
        try:
            assert chunk.stat().st_mtime_ns == before  # never written again
        except FileNotFoundError:
            break
        time.sleep(0.01)
    assert again.wait(timeout=120) == 0, (many / "results.log").read_text()
    check_features(many, monkeypatch, commanded)


def test_a_second_process_waits_for_the_work_of_the_first(many, costs):
    working, waiting = Event(), Event()
    for results in ("one", "two"):
        costs.lend(many / results)
    half_done = Stop("after", "*/x.npy", do=partial(meet, working, waiting))
    first = started(forked, many, "one", stop=half_done)
    assert working.wait(PATIENCE_S)
    (entry,) = FeatureStore(many / "cache" / "features").entries()
    made = (entry.folder / "x.npy").stat()
    second = started(
        forked, many, "two", stop=Stop("before", function="filelock:BaseFileLock.acquire", do=waiting.set)
    )
    assert [first.wait(), second.wait()] == [0, 0], (many / "two.log").read_text()
    kept_features(many)
    found = (entry.folder / "x.npy").stat()
    assert (found.st_ino, found.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)  # not made again
    assert scores_in(many / "one") == scores_in(many / "two")


@pytest.mark.slow
def test_two_processes_on_one_store_do_the_work_once(slow_many):
    children = [started(commanded, slow_many, results) for results in ("one", "two")]
    said = [(slow_many / f"{results}.log") for results in ("one", "two")]
    assert [child.wait(timeout=180) for child in children] == [0, 0], [log.read_text() for log in said]
    kept_features(slow_many)
    assert scores_in(slow_many / "one") == scores_in(slow_many / "two")


def test_what_another_process_fills_is_not_pruned(tmp_path, run, monkeypatch):
    monkeypatch.setenv("MIXMIM_BENCH_CACHE", str(tmp_path))
    entry = whole_entry(tmp_path / "features")
    with FileLock(entry.folder.with_suffix(".lock")):
        assert "0 removed" in run("cache", "prune", "--all").output
    assert "1 removed" in run("cache", "prune", "--all").output
    assert not entry.folder.exists()


# -- the commands -------------------------------------------------------------------------------------


@pytest.fixture
def judged(run, my_task, tmp_path):
    """A task whose features are kept."""
    args = ("-m", "test_vit", "--task", my_task, "-p", "knn", "--weights", "random")
    run("run", *args, "--results", tmp_path / "results")
    return my_task


@pytest.mark.usefixtures("judged")
def test_the_cache_is_listed(run):
    rows = json.loads(run("cache", "ls", "--json").output)
    assert {(row["task"], row["role"], row["rows"], row["state"]) for row in rows} == {
        *{("mine", "train", 48, "whole"), ("mine", "val", 12, "whole"), ("mine", "test", 30, "whole")}
    }
    table = run("cache", "ls").output
    assert "mine train" in table and "48 x 64" in table and "MB" in table


def test_images_that_changed_behind_their_time_are_found(judged, run):
    assert run("cache", "verify").output.count("images unchanged") == 3
    path = next((judged.parent / "images" / "val").rglob("*.png"))
    kept, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))  # as a malicious copy would
    said = run("cache", "verify", code=1).output
    assert f"1 images have changed, such as {path}" in said
    key = next(line.split()[0] for line in said.splitlines() if "have changed" in line)
    assert f"removed {key}" in run("cache", "prune", key).output
    assert len(json.loads(run("cache", "ls", "--json").output)) == 2


def test_images_that_changed_are_told(judged, run):
    change_time(judged.parent, {})
    assert "its images were changed since, so no run reads it" in run("cache", "verify").output
    judged.unlink()
    assert "its images cannot be compared" in run("cache", "verify").output


@pytest.mark.usefixtures("judged")
def test_pruning_takes_what_no_run_reads(run):
    store = FeatureStore()
    assert run("cache", "prune").output.strip() == "0 removed"
    entry = store.entries()[0]
    (entry.folder / "x.npy").unlink()
    said = run("cache", "prune", "--dry-run").output
    assert "would remove" in said and "unfinished" in said and len(store.entries()) == 3
    assert "1 removed" in run("cache", "prune").output
    assert len(store.entries()) == 2
    assert "0 removed" in run("cache", "prune", "--older-than", 1).output
    for path in store.entries()[0].folder.rglob("*"):
        os.utime(path, (1, 1))
    assert "not used for" in run("cache", "prune", "--older-than", 30).output
    assert "no features have the key 'zzz'" in run("cache", "prune", "zzz", code=2).output
