"""Bundles of results: shared, checked, merged; hostile ones change nothing."""

import dataclasses
import io
import json
import shutil
import stat
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from records import cost, made
from test_tables import N, right, saved

from mixmim_bench.errors import BenchError
from mixmim_bench.report.frame import to_long
from mixmim_bench.report.text import safe_csv
from mixmim_bench.specs import digest
from mixmim_bench.suite import bundles
from mixmim_bench.suite.bundles import merge, write_bundle
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.schema import record_schema

KEY = "0123456789abcdef"  # of a cost


@pytest.fixture
def mine(tmp_path):
    store = saved(tmp_path / "mine", {"a": right(0.9, 0), "b": right(0.5, 1)}, costs=False)
    store.save_cost(KEY, cost("a", 3.0))
    for record in store.records():
        store.save(dataclasses.replace(record, costs={"own": KEY, "run": KEY}), store.arrays(record.run_id))
    return store


@pytest.fixture
def yours(tmp_path):
    return saved(tmp_path / "yours", {"c": right(0.7, 2)}, task="other", costs=False)


def content(store):
    return {path.relative_to(store.folder): path.read_bytes() for path in store.folder.rglob("*.json")}


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def members_of(path):
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_results_of_two_machines_make_one_leaderboard(run, tmp_path, mine, yours):
    args = ("--results", mine.folder)
    run("results", "bundle", tmp_path / "m.zip", "-m", "a", *args)
    run("results", "bundle", tmp_path / "y.zip", "--results", yours.folder)
    said = run(
        "results", "merge", tmp_path / "m.zip", tmp_path / "y.zip", "--results", tmp_path / "both"
    ).output
    assert said.count("1 result added, 0 already there") == 2
    both = RunStore(tmp_path / "both")
    assert {record.model for record in both.finished().values()} == {"a", "c"}
    assert set(both.read_costs()) == {KEY}
    assert "other linear" in (tmp_path / "both" / "leaderboard.md").read_text()
    again = run("results", "merge", tmp_path / "y.zip", mine.folder, "--results", tmp_path / "both").output
    assert "0 results added, 1 already there" in again
    assert "1 result added, 1 already there" in again  # from a folder
    assert {record.model for record in both.finished().values()} == {"a", "b", "c"}


def test_the_same_results_give_the_same_bundle(tmp_path, mine):
    for name in ("one.zip", "two.zip"):
        assert write_bundle(mine, mine.records(), tmp_path / name) == 2
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with pytest.raises(BenchError, match="no finished runs"):
        write_bundle(mine, [], tmp_path / "none.zip")


def test_a_conflict_replaces_nothing(tmp_path, mine):
    other = saved(tmp_path / "other", {"a": right(0.9, 7)}, costs=False)
    before = content(mine)
    merged = merge(mine, other.folder)
    assert list(merged.refused.values()) == [
        "another result of this run is there, with other scores or of other images"
    ]
    assert content(mine) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: {**m, "../evil.json": b"{}"}, "holds '../evil.json', which no bundle does"),
        (lambda m: {**m, "/etc/evil": b""}, "which no bundle does"),
        (lambda m: {**m, "runs/evil.py": b""}, "which no bundle does"),
        (lambda m: {**m, "tasks/mine.toml": b""}, "which no bundle does"),
        (lambda m: {**m, "runs/../../x.json": b""}, "which no bundle does"),
    ],
)
def test_names_that_no_bundle_has_are_refused(tmp_path, mine, yours, change, said):
    write_bundle(mine, mine.records(), tmp_path / "b.zip")
    path = zipped(tmp_path / "hostile.zip", change(members_of(tmp_path / "b.zip")).items())
    before = content(yours)
    with pytest.raises(BenchError, match=said):
        merge(yours, path)
    assert content(yours) == before
    assert not list(tmp_path.rglob("evil*"))
    assert not list(yours.folder.glob(".merging*"))


def test_links_duplicates_and_sizes_are_refused(tmp_path, mine, yours, monkeypatch):
    write_bundle(mine, mine.records(), tmp_path / "b.zip")
    members = members_of(tmp_path / "b.zip")
    name = next(each for each in members if each.endswith(".npz"))
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(tmp_path / "twice.zip", [*members.items(), (name, members[name])])
    with pytest.raises(BenchError, match="the same name twice"):
        merge(yours, path)
    link = zipfile.ZipInfo("runs/0123456789abcdef.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(BenchError, match="which no bundle does"):
        merge(yours, zipped(tmp_path / "link.zip", [(link, "/etc/passwd")]))
    folder = tmp_path / "folder"
    shutil.copytree(mine.folder, folder)
    real = next((folder / "runs").glob("*.json"))
    real.rename(tmp_path / "elsewhere.json")
    real.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(BenchError, match="is a link"):
        merge(yours, folder)
    monkeypatch.setattr(bundles, "MOST_JSON", 100)
    with pytest.raises(BenchError, match="too large for a bundle"):
        merge(yours, tmp_path / "b.zip")
    monkeypatch.setattr(bundles, "MOST_MEMBERS", 2)
    with pytest.raises(BenchError, match="a bundle has at most 2"):
        merge(yours, tmp_path / "b.zip")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(BenchError, match="neither a bundle"):
        merge(yours, tmp_path / "text.zip")


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def claims_to_be_large():
    """An array of a few bytes whose header states terabytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<i4", "fortran_order": False, "shape": (1 << 40,)}
        )
        archive.writestr("best.npy", header.getvalue())
    return file.getvalue()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (
            npz(ids=np.array(["a"]), y=np.zeros(1, int), best=np.array([{"a": 1}], dtype=object)),
            "object (1,)",
        ),
        (claims_to_be_large(), "more than a bundle may hold"),
        (b"PK no zip", "cannot be read"),
        (npz(ids=np.array(["a"])), "cannot be scored"),
        (
            npz(ids=np.array(["a"]), y=np.zeros(1, int), best=np.zeros((1, 5), int)),
            "its predictions give 1.00000",
        ),
        (None, "predictions are missing"),
    ],
)
def test_predictions_are_bounded_and_scored_again(tmp_path, mine, yours, arrays, said):
    write_bundle(mine, [record for record in mine.records() if record.model == "a"], tmp_path / "b.zip")
    members = members_of(tmp_path / "b.zip")
    name = next(each for each in members if each.endswith(".npz"))
    members[name] = arrays
    path = zipped(
        tmp_path / "hostile.zip", [(key, value) for key, value in members.items() if value is not None]
    )
    before = content(yours)
    (reason,) = merge(yours, path).refused.values()
    assert said in reason
    assert {key: value for key, value in content(yours).items() if "costs" not in str(key)} == {
        key: value for key, value in before.items() if "costs" not in str(key)
    }


def test_intervals_are_computed_again_and_the_rest_is_left_out(tmp_path, mine, yours):
    write_bundle(mine, [record for record in mine.records() if record.model == "a"], tmp_path / "b.zip")
    members = members_of(tmp_path / "b.zip")
    name = next(each for each in members if each.startswith("runs") and each.endswith(".json"))
    record = json.loads(members[name])
    value = record["scores"]["top1"]["value"]
    record["scores"]["top1"] |= {"low": value - 1e-4, "high": value + 1e-4}
    record["scores"]["top5"] = {"value": 0.999, "low": 0.99, "high": 1.0}
    members[name] = json.dumps(record).encode()
    assert merge(yours, zipped(tmp_path / "b2.zip", members.items())).added
    merged = next(each for each in yours.records() if each.model == "a")
    assert set(merged.scores) == {"top1"}
    assert merged.scores["top1"]["high"] - merged.scores["top1"]["low"] > 0.02
    assert any("merged without scores" in note for note in merged.notes)


def test_ones_own_results_are_there_already_with_scores_that_predictions_do_not_give(tmp_path, mine):
    for record in mine.records():
        more = {"top1 10-shot": {"value": 0.5, "low": 0.4, "high": 0.6}}
        mine.save(dataclasses.replace(record, scores={**record.scores, **more}), mine.arrays(record.run_id))
    write_bundle(mine, mine.records(), tmp_path / "b.zip")
    merged = merge(mine, tmp_path / "b.zip")
    assert (len(merged.there), merged.added, merged.refused) == (2, [], {})
    assert all("top1 10-shot" in record.scores for record in mine.records())


def renewed(record, key, **changes):
    identity = {**record["identity"], key: {**record["identity"][key], **changes}}
    return {**record, "identity": identity, "run_id": digest(identity)}


def started(record, time):
    return {**record, "provenance": {**record["provenance"], "started": time}}


def seeded(record, seed):
    identity = {**record["identity"], "seed": seed}
    return {**record, "identity": identity, "run_id": digest(identity)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: {**r, "scores": {"top1": {"value": 0.99, "low": 0.9, "high": 1.0}}}, "top1 is 0.99000"),
        (
            lambda r: {**r, "scores": {"top1": {"value": 0.9, "low": 0.95, "high": 1.0}}},
            "outside its interval",
        ),
        (lambda r: {**r, "scores": {"top1": {"value": "x", "low": 0, "high": 1}}}, "scores.top1"),
        (lambda r: {**r, "identity": {**r["identity"], "seed": 5}}, "is not that of the identity"),
        (lambda r: {**r, "random_init": True}, "random_init is True"),
        (lambda r: {**r, "extra": 1}, "extra"),
        (lambda r: renewed(r, "task", metric_versions={"top1": 999}), "top1 has version 999"),
        (lambda r: renewed(r, "task", version=999), "task digits has version 999"),
        (lambda r: renewed(r, "protocol", version=999), "protocol linear has version 999"),
        (lambda r: renewed(r, "preprocessing", size=5), "identity.preprocessing.size is 5"),
        (lambda r: {**r, "error": "failed"}, "it is a failed run"),
        (
            lambda r: started(r, "9999-01-01T00:00:00"),
            "started at 9999-01-01T00:00:00, which is in the future",
        ),
        (lambda r: started(r, "zz"), "started at 'zz', which is no time"),
        (lambda r: {**r, "provenance": {"mine": float("nan")}}, "a number that is not finite"),
        (lambda r: {**r, "provenance": {"mine": "\ud800"}}, "text that is not Unicode"),
        (lambda r: renewed(r, "task", num_classes=0), "identity.task.num_classes"),
        (lambda r: seeded(r, 7), "it has a seed"),
    ],
)
def test_records_that_contradict_themselves_are_refused(tmp_path, mine, yours, change, said):
    write_bundle(mine, [record for record in mine.records() if record.model == "a"], tmp_path / "b.zip")
    members = members_of(tmp_path / "b.zip")
    name = next(each for each in members if each.startswith("runs") and each.endswith(".json"))
    record = json.loads(members.pop(name))
    changed = change(record)
    for kind in ("json", "npz"):  # under the name that it claims
        old = f"runs/{record['run_id']}.{kind}"
        members[f"runs/{changed['run_id']}.{kind}"] = members.pop(old, None) or json.dumps(changed).encode()
    (reason,) = merge(yours, zipped(tmp_path / "hostile.zip", members.items())).refused.values()
    assert said in reason
    assert len(yours.records()) == 1


def test_another_seed_gets_the_names_that_its_cell_has(tmp_path, mine):
    """Else a newer seed could rename what is there; at another size, a model has a name of its own."""
    kept = mine.arrays(mine.records()[0].run_id)
    mine.save(made("a", right(0.9, 0).mean(), protocol="finetune", seed=0), kept)
    seed = made("a", right(0.9, 0).mean(), protocol="finetune", seed=1)
    other = RunStore(tmp_path / "other")
    other.prepare()
    other.save(dataclasses.replace(seed, model="better", weights="mine"), kept)
    identity = {**seed.identity, "preprocessing": {"size": [64, 64]}}
    larger = dataclasses.replace(seed, identity=identity, run_id=digest(identity), model="a@64")
    other.save(larger, kept)
    assert sorted(merge(mine, other.folder).added) == sorted([seed.run_id, larger.run_id])
    assert (mine.result(seed.run_id).model, mine.result(seed.run_id).weights) == ("a", "w")
    assert mine.result(larger.run_id).model == "a@64"


def test_damaged_bundles_and_other_folders_are_errors(run, tmp_path, mine, yours):
    write_bundle(mine, mine.records(), tmp_path / "b.zip")
    whole = (tmp_path / "b.zip").read_bytes()
    for place in range(60, len(whole), len(whole) // 40):
        flipped = bytearray(whole)
        flipped[place] ^= 0xFF
        (tmp_path / "flipped.zip").write_bytes(flipped)
        try:
            merge(yours, tmp_path / "flipped.zip")
        except BenchError as error:
            assert "flipped.zip" in str(error)
    for wrong in (mine.runs, tmp_path):
        said = run("results", "merge", wrong, "--results", yours.folder, code=2).output
        assert "is neither a bundle (zip) nor a results folder" in said


def test_no_cell_is_a_formula():
    records = [made(name, 0.5, task=name) for name in ("=1+1", "+a", "-b", "@c", "plain")]
    frame = to_long(records, {})
    read = pd.read_csv(io.StringIO(safe_csv(frame)))
    assert sorted(read["model"]) == ["'+a", "'-b", "'=1+1", "'@c", "plain"]
    assert read["value"].tolist() == [0.5] * 5


def test_the_schema_of_records_is_published(run, mine):
    published = json.loads((Path(__file__).parent.parent / "results" / "record.schema.json").read_text())
    assert json.loads(run("results", "schema").output) == published == record_schema()
    record = json.loads(next(mine.runs.glob("*.json")).read_text())
    assert set(record) <= set(published["properties"])
    assert set(published["required"]) <= set(record)


def test_a_draw_of_other_length_is_no_crash(tmp_path, yours):
    store = saved(tmp_path / "x", {"a": right(0.9, 0)}, costs=False)
    (record,) = store.records()
    arrays = {**store.arrays(record.run_id), "y": np.zeros(N - 1, np.int32)}
    store.save(dataclasses.replace(record, data_bytes="other"), arrays)
    (reason,) = merge(yours, store.folder).refused.values()
    assert "cannot be scored" in reason
