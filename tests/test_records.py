"""The results folder: what is saved, what counts as a result, and what becomes of the rest."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from records import cost, made

from mixmim_bench.errors import BenchError
from mixmim_bench.report.write import write_report
from mixmim_bench.suite import records
from mixmim_bench.suite.execute import check_kept
from mixmim_bench.suite.records import RunStore


def test_a_record_of_another_version_is_set_aside_and_kept(tmp_path):
    store = RunStore(tmp_path)
    store.prepare()
    path = store.runs / f"{made().run_id}.json"
    path.write_text('{"schema": 2}')
    store.save(made(), {})
    assert [record.model for record in store.records()] == ["a"]
    assert path.with_name(f"{path.name}.unread").read_text() == '{"schema": 2}'


def test_numbers_of_numpy_are_kept_and_what_json_cannot_hold_is_a_failure():
    kept = json.loads(made(chosen={"index": np.int64(3), "share": np.float32(0.5)}).to_json())
    assert kept["chosen"] == {"index": 3, "share": 0.5}
    for record, arrays in (
        (made(chosen={"C": float("nan")}), {}),
        (made(chosen={"C": object()}), {}),
        (made(), {"names": np.array([{}])}),
    ):
        with pytest.raises((TypeError, ValueError)):
            check_kept(record, arrays)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "1",
        "null",
        '{"schema": 1}',
        '{"schema": 99, "run_id": "x"}',
        json.dumps({**dataclasses.asdict(made()), "surplus": 1}),
        json.dumps({**dataclasses.asdict(made()), "run_id": "0" * 16}),
        json.dumps(dataclasses.asdict(made()))[:-9],
    ],
)
def test_a_file_that_is_no_record_is_named_and_stops_nothing(tmp_path, text):
    store = RunStore(tmp_path)
    store.prepare()
    store.save(made("good"), {})
    (store.runs / f"{made().run_id}.json").write_text(text)
    report = write_report(store)
    (broken,) = report.broken
    assert broken.startswith(f"{store.runs / made().run_id}.json (")
    assert pd.read_csv(tmp_path / "leaderboard.csv")["model"].tolist() == ["good"]


def test_a_changed_record_is_no_record(tmp_path):
    store = RunStore(tmp_path)
    store.prepare()
    record = made()
    forged = {**dataclasses.asdict(record), "identity": {**record.identity, "precision": "bfloat16"}}
    (store.runs / f"{record.run_id}.json").write_text(json.dumps(forged))
    assert store.records() == []


def test_a_failure_never_takes_the_place_of_a_result(tmp_path):
    store = RunStore(tmp_path)
    store.prepare()
    store.save(made(), {})
    store.save(made(error="no memory", scores={}), {})
    assert [record.error for record in store.records()] == [""]


def test_a_result_ends_the_failures_of_its_run_under_other_settings(tmp_path):
    store = RunStore(tmp_path)
    store.prepare()
    store.save(made(error="broken", scores={}, values={"epochs": 1}), {})
    store.save(made("other", error="broken", scores={}), {})
    store.save(made(), {})
    assert sorted((record.model, record.error) for record in store.records()) == [
        ("a", ""),
        ("other", "broken"),
    ]


def test_a_cost_that_cannot_be_read_is_measured_again(tmp_path):
    store = RunStore(tmp_path)
    store.prepare()
    store.save_cost("good", cost())
    (store.costs / "bad.json").write_text('{"model": "a"}')
    (store.costs / "half.json").write_text('{"model": "a')
    assert store.read_costs() == {"good": cost()}


def stored(folder, record):
    """Keep a record with predictions, as `run` does."""
    store = RunStore(folder)
    store.prepare()
    store.save(record, {"ids": np.array(["a"])})
    return store


def edited(**changes):
    """Change fields of the text of a record; dots name fields within."""

    def edit(text):
        values = json.loads(text)
        for field, value in changes.items():
            *above, last = field.split("__")
            within = values
            for name in above:
                within = within[name]
            within[last] = value
        return json.dumps(values)

    return edit


HAND_EDITED = {
    "a score of text": (edited(scores__top1__value="0.9"), "scores.top1.value"),
    "a score above 1": (edited(scores__top1__value=1.5, scores__top1__high=2.0), "scores.top1.value"),
    "a value outside its interval": (edited(scores__top1__low=0.95), "scores.top1: the value 0.9 is outside"),
    "a score that is null": (edited(scores__top1__value=None), "scores.top1.value"),
    "NaN": (edited(scores__top1__value=float("nan")), "scores.top1.value"),
    "infinity": (edited(timings={"fit_s": float("inf")}), "timings.fit_s"),
    "no scores": (edited(scores={}), "scores: top1 is missing, and there is no error"),
    "scores in a list": (edited(scores=[]), "scores"),
    "no costs": (edited(costs=None), "costs"),
    "nested brackets": (lambda _: "[" * 200_000 + "]" * 200_000, "it is not JSON"),
    "cut short": (lambda text: text[:-20], "it is not JSON"),
    "another schema": (edited(schema=7), "schema"),
    "a field of its own": (edited(more=1), "more"),
    "random that passes as trained": (edited(random_init=True), "random_init is True"),
    "trained that passes as random": (edited(weights="random init"), "weights is 'random init'"),
    "another model": (edited(model="mixmim-b"), "model is 'mixmim-b', and the architecture is a"),
    "another seed": (edited(identity__seed=3), "is not that of the identity"),
    "another name": (edited(run_id="0" * 16), "is not that of the identity"),
    "NaN in the identity": (edited(identity__task__crop_pct=float("nan")), "identity: "),
    "a list": (lambda _: "[]", "it is not a JSON object"),
    "a note of numbers": (edited(notes=[1]), "notes.0"),
}


@pytest.mark.parametrize("edit", HAND_EDITED)
def test_records_that_were_edited_by_hand_are_named_and_not_counted(tmp_path, edit):
    store = stored(tmp_path, made())
    assert store.finished()
    path = store.runs / f"{made().run_id}.json"
    change, reason = HAND_EDITED[edit]
    path.write_text(change(path.read_text()))
    report = write_report(store)
    assert len(report.broken) == 1 and report.broken[0].startswith(f"{path} (")
    assert reason in report.broken[0]
    assert report.markdown == "No run is finished yet."
    assert not store.finished() and store.result(made().run_id) is None
    again = stored(tmp_path, made())  # the run is done again, and the file kept
    assert again.finished() and path.with_name(f"{path.name}.unread").exists()


@pytest.mark.parametrize(
    "change", [{"images_per_s": 0.0}, {"images_per_s": "fast"}, {"gmacs": float("nan")}, {"threads": None}]
)
def test_costs_that_were_edited_by_hand_are_measured_again(tmp_path, change):
    store = stored(tmp_path, made())
    store.save_cost("a-run", cost())
    assert store.read_costs() == {"a-run": cost()}
    path = store.costs / "a-run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert store.read_costs() == {}
    (broken,) = write_report(store).broken
    assert next(iter(change)) in broken


def test_a_result_whose_predictions_are_gone_is_not_finished(tmp_path):
    store = stored(tmp_path, made())
    path = store.runs / f"{made().run_id}.npz"
    path.unlink()
    not_counted = []
    assert not store.finished(not_counted) and store.result(made().run_id) is None
    assert not_counted == [f"{path.with_suffix('.json')} (its predictions are missing)"]
    assert "90.0" in write_report(store).markdown  # its score is still one
    stored(tmp_path, made(value=0.8))
    assert store.finished()
    kept = list(store.runs.glob("*.without-predictions"))
    assert len(kept) == 1 and json.loads(kept[0].read_text())["scores"]["top1"]["value"] == 0.9


def test_shown_results_are_records():
    broken = []
    store = RunStore(Path(__file__).parent.parent / "results" / "shown")
    assert store.records(broken) and store.read_costs(broken) and not broken
    assert len(store.finished()) == len(store.records())


def test_a_record_that_cannot_be_read_now_is_not_taken_for_none(tmp_path, monkeypatch):
    store = stored(tmp_path, made())

    def failing(_path):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", failing)
        with pytest.raises(BenchError, match="cannot be read: Input/output error"):
            store.save(made(error="it failed"), {})
    assert store.result(made().run_id).scores["top1"]["value"] == 0.9
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", failing)
        store.save(made(value=0.8), {"ids": np.array(["a"])})
    assert store.result(made().run_id).scores["top1"]["value"] == 0.8
    (kept,) = store.runs.glob("*.unread")
    assert json.loads(kept.read_text())["scores"]["top1"]["value"] == 0.9


def test_saving_does_not_read_the_other_records_again(tmp_path, monkeypatch):
    """A sweep of n runs would otherwise read n * n records."""
    store = RunStore(tmp_path)
    store.prepare()
    read, reads = records.read_record, []
    monkeypatch.setattr(records, "read_record", lambda path: reads.append(path) or read(path))
    for seed in range(30):
        store.save(made(seed=seed), {"ids": np.array(["a"])})
    assert len(store.records()) == 30
    assert len(reads) <= 30 + 30  # those of the last line, and at most one per save
