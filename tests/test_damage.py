"""Damage of stored features: whatever was changed, it counts as lacking and is made again."""

import json

import numpy as np
import pytest

from mixmim_bench.features import store as feature_store
from mixmim_bench.features.store import Entry, FeatureStore, Filling, Piece, filling
from mixmim_bench.upkeep import prune, verify

ROWS, WIDTH = 1200, 4


def values(rows):
    return (rows[:, None] * np.array([1.0, 2.0, 3.0, 4.0])).astype(np.float32)


def piece(start, stop):
    rows = np.arange(start, stop)
    digests = np.tile((rows % 251).astype(np.uint8)[:, None], (1, 16))
    return Piece(rows, {"own": values(rows)}, digests, {})


def fill(entry):
    """Fill what is lacking, as an extraction does; returns the first row that was made."""
    with filling({"own": entry}, ROWS) as lacking:
        if lacking is None:
            return ROWS
        first = lacking.start
        for at in range(lacking.start, ROWS, 100):
            lacking.add(piece(at, min(at + 100, ROWS)))
        lacking.finish()
    return first


@pytest.fixture
def entry(tmp_path):
    found = FeatureStore(tmp_path / "features").entry({"weights": "0"}, {"task": "t"})
    fill(found)
    return found


def again(entry):
    """The entry as another process finds it."""
    feature_store._intact.clear()
    return Entry(entry.folder, entry.made_by, entry.about)


def flip(path, places=(-40,)):
    content = bytearray(path.read_bytes())
    for place in places:
        content[place] ^= 0x40
    path.write_bytes(bytes(content))


def swap_rows(path):
    x = np.load(path)
    x[[3, 7]] = x[[7, 3]]
    np.save(path, x)


def manifest_with(**changes):
    def change(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


DAMAGE = {
    "40 bytes of the features": ("x.npy", lambda p: flip(p, range(-400, 0, 10))),
    "rows in another order": ("x.npy", swap_rows),
    "the header of the array": ("x.npy", lambda p: flip(p, (10,))),
    "the rows": ("rows.npz", lambda p: flip(p, (60,))),
    "an empty array": ("x.npy", lambda p: p.write_bytes(b"")),
    "a manifest without files": ("whole.json", manifest_with(files=None)),
    "a manifest of other types": ("whole.json", manifest_with(files={"x.npy": 3, "rows.npz": []})),
    "a manifest of other files": ("whole.json", manifest_with(files={"../../etc/passwd": {}})),
    "a manifest without numbers": ("whole.json", manifest_with(rows="many")),
    "a manifest with wrong hashes": (
        "whole.json",
        lambda p: p.write_text(p.read_text().replace('"sha256": "', '"sha256": "0')),
    ),
    "a manifest of 100,000 brackets": ("whole.json", lambda p: p.write_text("[" * 100_000)),
    "a manifest that is a list": ("whole.json", lambda p: p.write_text("[]")),
    "no manifest": ("whole.json", lambda p: p.unlink()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_counts_as_lacking_and_is_made_again(entry, damage):
    name, change = DAMAGE[damage]
    change(entry.folder / name)
    damaged = again(entry)
    assert not damaged.is_intact()
    assert fill(damaged) == 0  # everything is made again
    mended = again(entry)
    assert mended.is_intact()
    np.testing.assert_array_equal(mended.open().x, values(np.arange(ROWS)))


def test_files_are_hashed_once_per_process(entry, monkeypatch):
    fresh = again(entry)
    hashed = []
    measured = feature_store._measured
    monkeypatch.setattr(feature_store, "_measured", lambda path: hashed.append(path.name) or measured(path))
    for _ in range(3):
        fresh.open()
    assert sorted(hashed) == ["rows.npz", "x.npy"]
    swap_rows(fresh.folder / "x.npy")  # behind the back of this process: its stamp is another one
    assert not fresh.is_intact()


@pytest.mark.parametrize("damage", [name for name in DAMAGE if "manifest" not in name])
def test_what_is_damaged_is_found_and_pruned(entry, damage):
    name, change = DAMAGE[damage]
    change(entry.folder / name)
    store = FeatureStore(entry.folder.parent)
    found = []
    assert not verify(store, found.append) or "no run reads it" in found[0].text
    (removed,) = prune(store)
    assert removed.entry.key == entry.key and not entry.folder.exists()


# -- chunks of an extraction that was interrupted ----------------------------------------------------


@pytest.fixture
def interrupted(tmp_path):
    """Two of three chunks are written."""
    entry = FeatureStore(tmp_path / "features").entry({"weights": "0"}, {})
    Filling({"own": entry}, ROWS).add(piece(0, 1024))
    assert len(list((entry.folder / "chunks").iterdir())) == 2
    return entry


def without_some_rows(path):
    with np.load(path) as file:
        arrays = dict(file)
    arrays = {**arrays, "rows": arrays["rows"][:-5], "x": arrays["x"][:-5], "digests": arrays["digests"][:-5]}
    np.savez(path, **arrays)


def fewer_features(path):
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "x": arrays["x"][:100]})


CHUNK_DAMAGE = {
    "flipped": lambda p: flip(p, (1500,)),
    "flipped at its end": lambda p: flip(p, (-20,)),
    "empty": lambda p: p.write_bytes(b""),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:700]),
    "no archive": lambda p: p.write_bytes(b"PK not one"),
    "too few images": without_some_rows,
    "too few features": fewer_features,
}


@pytest.mark.parametrize("damage", CHUNK_DAMAGE)
@pytest.mark.parametrize("start", [0, 512])
def test_a_damaged_chunk_is_made_again(interrupted, damage, start):
    CHUNK_DAMAGE[damage](interrupted.folder / "chunks" / f"{start:09d}.npz")
    assert fill(interrupted) == start
    np.testing.assert_array_equal(again(interrupted).open().x, values(np.arange(ROWS)))


def test_images_that_were_left_out_are_no_damage(tmp_path):
    entry = FeatureStore(tmp_path / "features").entry({"weights": "0"}, {})
    some = piece(0, 600)
    kept = np.delete(np.arange(600), [5, 511, 512])
    left_out = Piece(
        some.rows[kept],
        {"own": some.values["own"][kept]},
        some.digests[kept],
        dict.fromkeys((5, 511, 512), "?"),
    )
    Filling({"own": entry}, ROWS).add(left_out)
    assert entry.has_chunk(0, 512)
    assert fill(entry) == 512


def test_a_folder_of_somebody_else_can_be_read(entry, monkeypatch):
    """Nothing is written where all features are there: neither a lock nor the time of the last use."""

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    fresh = again(entry)
    monkeypatch.setattr(feature_store.os, "utime", refuse)
    monkeypatch.setattr(Entry, "lock", refuse)
    assert len(fresh.open().x) == ROWS
