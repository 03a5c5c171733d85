"""The machine: what `auto` means on it."""

import pytest
import torch

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
