"""OpenMMLab's MixMIM with seeded weights: writes its checkpoint and what it computes.

Run by test_openmmlab.py in an environment of its own: python openmmlab.py MODE ARCH FOLDER, where MODE is
'classifier' or 'pretraining'. The digest it writes is what stands in tests/golden.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

torch.manual_seed(0)
sys.path.insert(0, str(Path(__file__).parents[1]))
import seeded  # noqa: E402
from mmpretrain.models.backbones import MixMIMTransformer  # noqa: E402
from mmpretrain.models.heads import LinearClsHead, MixMIMPretrainHead  # noqa: E402
from mmpretrain.models.necks import MixMIMPretrainDecoder  # noqa: E402
from mmpretrain.models.selfsup import MixMIMPretrainTransformer  # noqa: E402
from mmpretrain.models.utils import build_2d_sincos_position_embedding  # noqa: E402


def seed_weights(modules):
    """Fill every weight but the computed tables, and return all as OpenMMLab's checkpoint names them."""
    state = {}
    for prefix, module in modules.items():
        for name, value in module.state_dict().items():
            full = f"{prefix}.{name}"
            if not name.endswith(("pos_embed", "relative_position_index")):
                value.copy_(torch.from_numpy(seeded.weights(full, tuple(value.shape), 0)))
            state[full] = value.clone()
    return state


@torch.no_grad()
def classifier(arch):
    backbone = MixMIMTransformer(arch=arch)  # leaves the positions zero, for a checkpoint to fill
    positions = build_2d_sincos_position_embedding(56, backbone.embed_dims)
    backbone.absolute_pos_embed.copy_(positions)
    head = LinearClsHead(num_classes=1000, in_channels=backbone.num_features)
    state = seed_weights({"backbone": backbone, "head": head})
    backbone.eval()
    found = {}
    for i, layer in enumerate(backbone.layers):  # tokens before patch merging
        layer.blocks[-1].register_forward_hook(
            lambda _m, _i, out, i=i: found.update({f"stage{i}": out.numpy()})
        )
    (features,) = backbone(torch.from_numpy(seeded.images(2, 224, 0)))
    return state, {"features": features.numpy(), "logits": head((features,)).numpy(), **found}


def pretraining(arch):
    backbone = MixMIMPretrainTransformer(arch=arch)
    backbone.init_weights()
    neck = MixMIMPretrainDecoder(num_patches=49, embed_dim=backbone.num_features, encoder_stride=32)
    neck.init_weights()
    head = MixMIMPretrainHead(
        loss=dict(type="PixelReconstructionLoss", criterion="L2"), norm_pix=True, patch_size=32
    )
    state = seed_weights({"backbone": backbone, "neck": neck})
    images = torch.from_numpy(seeded.images(3, 224, 1))  # an odd batch: the middle image is its own partner
    latent, mask = backbone(images)
    loss = head.loss(neck(latent, mask), images, mask)
    loss.backward()
    gradient = {
        "gradient_first": backbone.patch_embed.projection.weight.grad.numpy(),
        "gradient_last": neck.decoder_pred.bias.grad.numpy(),
    }
    return state, {"loss": loss.item(), "mask": mask.numpy(), "latent": latent.detach().numpy(), **gradient}


if __name__ == "__main__":
    mode, arch, folder = sys.argv[1:]
    state, results = {"classifier": classifier, "pretraining": pretraining}[mode](arch)
    torch.save({"meta": {"epoch": 100}, "state_dict": state}, Path(folder) / "openmmlab.pth")
    np.savez(Path(folder) / "openmmlab.npz", **results)
    (Path(folder) / "digest.json").write_text(json.dumps(seeded.digest(results)) + "\n")
