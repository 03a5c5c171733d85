"""Facts about models: computed once, kept while the code stays the same, never for code that may change."""

import pytest
import timm

from mixmim_bench import factcache, facts
from mixmim_bench.cache import cache_folder
from mixmim_bench.errors import BenchError
from mixmim_bench.models.build import feature_width, preprocessing
from mixmim_bench.registry import find_model


@pytest.fixture
def counted(monkeypatch):
    """Return how often a fact was computed."""
    monkeypatch.setattr(factcache, "_IN_PROCESS", {})
    calls = []

    def compute():
        calls.append(None)
        return 17

    return compute, calls


def files():
    return list((cache_folder() / "facts").glob("*.json"))


def test_a_fact_is_computed_once(counted, monkeypatch):
    compute, calls = counted
    for _ in range(3):
        assert factcache.fact_of("test_vit", "a number", compute, {"a": 1}) == 17
        monkeypatch.setattr(factcache, "_IN_PROCESS", {})  # as in another process
    assert len(calls) == 1
    factcache.fact_of("test_vit", "a number", compute, {"a": 2})
    assert len(calls) == 2


def test_other_code_has_other_facts(counted, monkeypatch):
    compute, calls = counted
    factcache.fact_of("test_vit", "a number", compute)
    monkeypatch.setattr(factcache, "_code", lambda: ["edited"])
    factcache.fact_of("test_vit", "a number", compute)
    assert len(calls) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"what": "a number"}'])
def test_a_damaged_file_is_computed_again(counted, monkeypatch, text):
    compute, calls = counted
    factcache.fact_of("test_vit", "a number", compute)
    (file,) = files()
    file.write_text(text)
    monkeypatch.setattr(factcache, "_IN_PROCESS", {})
    assert factcache.fact_of("test_vit", "a number", compute) == 17 and len(calls) == 2


def test_facts_of_other_architectures_last_for_this_process(counted, monkeypatch):
    compute, calls = counted

    def my_own_network(**kwargs):
        return timm.create_model("test_vit", **kwargs)

    monkeypatch.setitem(timm.models._registry._model_entrypoints, "my_own_network", my_own_network)
    for _ in range(2):
        assert factcache.fact_of("my_own_network", "a number", compute) == 17
    assert len(calls) == 1 and not files()


def test_errors_are_not_kept(counted):
    compute, _ = counted

    def failing():
        raise BenchError("not now")

    with pytest.raises(BenchError, match="not now"):
        factcache.fact_of("test_vit", "a number", failing)
    assert factcache.fact_of("test_vit", "a number", compute) == 17


@pytest.mark.parametrize("name", ["mixmim-b", "test_vit", "resnet18"])
def test_facts_are_those_of_the_model(name, monkeypatch):
    model = find_model(name)
    for _ in range(2):  # computed, then read
        assert facts.preprocessing(model) == preprocessing(model)
        assert facts.feature_width(model) == feature_width(model)
        monkeypatch.setattr(factcache, "_IN_PROCESS", {})
