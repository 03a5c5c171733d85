"""What the released code computes at another image size: writes tests/golden/released_384.json.

The released code has no licence and is on no package index, so this is run by hand, with a clone of
https://github.com/Sense-X/MixMIM and a folder that holds timm 0.5.4, which it was written for:

    pip install --no-deps --target FOLDER timm==0.5.4
    python tests/reference/released.py CLONE FOLDER

Seeded weights for 224 pixels are loaded into its 384-pixel network by its own `interpolate_pos_embed`.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(clone: str, timm_folder: str) -> None:
    """Build the released networks, interpolate as they do, and keep a digest of what comes out."""
    sys.path[:0] = [clone, timm_folder, str(HERE.parent)]
    import numpy as np
    import torch

    vars(np)["float"] = float  # removed from numpy since
    import seeded
    from models_mixmim_ft import mixmim_base, mixmim_base_384
    from util.pos_embed import interpolate_pos_embed

    state = mixmim_base().state_dict()
    for name, value in state.items():
        if not name.endswith(("pos_embed", "relative_position_index")):
            state[name] = torch.from_numpy(seeded.weights(name, tuple(value.shape), 0))
    network = mixmim_base_384().eval()
    interpolate_pos_embed(network, state)
    print(network.load_state_dict(state, strict=False))
    with torch.no_grad():
        images = torch.from_numpy(seeded.images(1, 384, 0))
        features = network.forward_features(images)
        results = {
            "positions": network.absolute_pos_embed.numpy(),
            "features": features.numpy(),
            "logits": network.head(features).numpy(),
        }
    golden = HERE.parent / "golden" / "released_384.json"
    golden.write_text(json.dumps(seeded.digest(results)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
