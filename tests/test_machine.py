"""The machine: what `auto` means on it."""

import os
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import torch

from mixmim_bench import machine
from mixmim_bench.cli.options import Count
from mixmim_bench.errors import BenchError
from mixmim_bench.machine import open_machine


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16"), ({"avx2": True}, "float32")],
)
def test_auto_takes_bfloat16_where_the_processor_has_it(monkeypatch, capabilities, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert open_machine("cpu", "auto").precision == precision
    assert open_machine("cpu", "float32").precision == "float32"


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(BenchError, match="device 'cuda:9' cannot be used"):
        open_machine("cuda:9")


def test_a_gpu_gets_workers_for_its_cores_and_shared_memory(monkeypatch):
    free = {"bytes": 100 * 2**30}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(12), raising=False)
    monkeypatch.setattr(machine, "SHARED_MEMORY", Path("/"))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=free["bytes"]))
    assert machine._workers_for_gpu(256) == 11
    free["bytes"] = 2**30  # two workers of three batches of 154 MB
    assert machine._workers_for_gpu(256) == 2
    free["bytes"] = 64 * 2**20
    assert machine._workers_for_gpu(256) == 0
    assert open_machine("cpu").workers == 0 and open_machine("cpu").batch_size == 64


@pytest.mark.parametrize(("text", "value"), [("auto", None), ("3", 3)])
def test_a_number_may_be_left_to_the_machine(text, value):
    assert Count(min=0).convert(text, None, None) == value
    with pytest.raises(click.BadParameter):
        Count(min=0).convert("many", None, None)
