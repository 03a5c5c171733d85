"""Pretraining: what distributed training needs of the network."""

import subprocess
import sys

import pytest
import timm
import torch

from mixmim_bench import pretraining_model

SIZES = {"img_size": 64, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4)}
SIZES |= {"decoder_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}

WORKER = f"""
import sys
import pytest
import timm
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from mixmim_bench import pretraining_model

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{{folder}}/meet", rank=rank, world_size=2)
given = torch.load(folder + "/given.pt")
network = pretraining_model("mixmim_base", **{SIZES!r})
network.load_state_dict(given["state"])
parallel = DistributedDataParallel(network)
result = parallel(given["images"][4 * rank : 4 * rank + 4], given["mask"])
result.loss.backward()
gradients = {{name: p.grad for name, p in network.named_parameters() if p.requires_grad}}
torch.save((result.loss.detach(), gradients), folder + f"/rank{{rank}}.pt")
distributed.destroy_process_group()
"""


def test_gradients_are_synchronised_between_processes(tmp_path):
    """Each of two gloo processes has half of the images, and both end with the mean of their gradients."""
    torch.manual_seed(0)
    network = pretraining_model("mixmim_base", **SIZES)
    images, mask = torch.randn(8, 3, 64, 64), network.random_mask()
    torch.save({"state": network.state_dict(), "images": images, "mask": mask}, tmp_path / "given.pt")
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(tmp_path)], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors.decode()
    losses = [network(half, mask).loss for half in images.split(4)]
    (sum(losses) / 2).backward()
    for rank in range(2):
        loss, gradients = torch.load(tmp_path / f"rank{rank}.pt")
        assert torch.allclose(loss, losses[rank], rtol=1e-5)
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                assert torch.allclose(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("arch", ["mixmim_base", "mixmim_base_384", "mixmim_tiny"])
def test_it_is_the_encoder_of_its_model(arch):
    """The same patches, windows and shapes, so that its weights belong to the model."""
    with torch.device("meta"):
        pretrained, encoder = pretraining_model(arch), timm.create_model(arch, num_classes=0)
    shapes = {name: values.shape for name, values in pretrained.state_dict().items()}
    own = {name: values.shape for name, values in encoder.state_dict().items()}
    assert own.items() <= shapes.items()
    assert pretrained.cell == (8 if arch == "mixmim_tiny" else 32)
