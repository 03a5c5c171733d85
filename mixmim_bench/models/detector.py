"""Networks that detect objects: torchvision's Mask R-CNN with a feature pyramid network on a backbone."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from mixmim_bench.models.pyramid import STRIDES, Pyramid, neck_of

BOX_CELLS = 7  # of a region's map, on a side; of masks twice as many
INK = 0.5  # probability above which a pixel belongs to an object


class _Maps(nn.Module):
    """A neck and a feature pyramid network: five maps of the same width, strides 4 to 64."""

    def __init__(self, pyramid: Pyramid, width: int) -> None:
        super().__init__()
        self.neck = neck_of(pyramid)
        self.fpn = FeaturePyramidNetwork(list(self.neck.widths), width, LastLevelMaxPool())
        self.out_channels = width  # read by torchvision

    def forward(self, maps: Sequence[Tensor]) -> Mapping[str, Tensor]:
        return self.fpn(OrderedDict((str(place), each) for place, each in enumerate(self.neck(maps))))


class Detector(nn.Module):
    """Mask R-CNN (arXiv 1703.06870), or Faster R-CNN for sets without masks, on any pyramid.

    Images are padded squares (B, 3, S, S) of which each shows `sizes` (B, 2) pixels; what no image of a batch
    shows is cut off. The heads compute in float32.

    Args:
        pyramid: the backbone.
        num_classes: K, without the background.
        masks: whether to predict masks.
        score_threshold: detections below it are dropped.
        per_image: the most detections of an image.
        width: channels of the feature pyramid network and of the mask head.
        box_width: of the two linear layers of the box head.
        proposals: regions of an image at inference; twice as many in training, of which `sampled` are learnt.
        sampled: see `proposals`.
        seed: of the heads.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        num_classes: int,
        *,
        masks: bool,
        score_threshold: float = 0.05,
        per_image: int = 100,
        width: int = 256,
        box_width: int = 1024,
        proposals: int = 1000,
        sampled: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            maps = _Maps(pyramid, width)
            of_masks: dict[str, Any] = {}
            if masks:
                of_masks = {
                    "mask_head": MaskRCNNHeads(width, [width] * 4, 1),
                    "mask_predictor": MaskRCNNPredictor(width, width, num_classes + 1),
                }
            parts: Any = (MaskRCNN if masks else FasterRCNN)(
                maps,
                box_head=TwoMLPHead(width * BOX_CELLS**2, box_width),
                box_predictor=FastRCNNPredictor(box_width, num_classes + 1),
                rpn_pre_nms_top_n_train=2 * proposals,
                rpn_post_nms_top_n_train=2 * proposals,
                rpn_pre_nms_top_n_test=proposals,
                rpn_post_nms_top_n_test=proposals,
                box_batch_size_per_image=sampled,
                box_score_thresh=score_threshold,
                box_detections_per_img=per_image,
                **of_masks,
            )
        self.pyramid = pyramid
        self.maps = maps
        self.rpn = parts.rpn
        self.roi_heads = parts.roi_heads
        self.masks = masks
        self.width = width
        self.proposals = proposals

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations of the backbone in the backward pass."""
        self.pyramid.set_grad_checkpointing(enable)

    def parts(self, size: tuple[int, int]) -> list[tuple[nn.Module, list[Any], int]]:
        """Return what is behind the backbone: modules, the shapes of their inputs, and how many an image has.

        Of an image (h, w) with all its proposals, and masks for as many detections as an image can have.
        """
        shapes = [(1, *shape) for shape in self.pyramid.shapes(size)]
        height, width = (side // STRIDES[0] for side in self.pyramid.padded(size))
        levels: list[tuple[int, ...]] = []
        for _ in range(5):
            levels.append((1, self.width, height, width))
            height, width = -(-height // 2), -(-width // 2)
        heads: Any = self.roi_heads
        parts: list[tuple[nn.Module, list[Any], int]] = [
            (self.maps, [shapes], 1),
            (self.rpn.head, [levels], 1),
            (
                nn.Sequential(heads.box_head, heads.box_predictor),
                [(1, self.width, BOX_CELLS, BOX_CELLS)],
                self.proposals,
            ),
        ]
        if self.masks:
            masks = nn.Sequential(heads.mask_head, heads.mask_predictor)
            parts.append((masks, [(1, self.width, 2 * BOX_CELLS, 2 * BOX_CELLS)], heads.detections_per_img))
        return parts

    def forward(self, images: Tensor, targets: Sequence[Mapping[str, Tensor]]) -> Any:
        """Return the losses by name in training, else the detections of each image.

        Args:
            images: (B, 3, S, S).
            targets: `size` (2,) of what each image shows; in training also `boxes` (k, 4), `labels` (k,) and
                `masks` (k, S, S).
        """
        sizes = [(int(target["size"][0]), int(target["size"][1])) for target in targets]
        height, width = (max(each) for each in zip(*sizes, strict=True))
        shown = self.pyramid.pad(images[..., :height, :width])
        maps = self.maps(self.pyramid(shown))
        with torch.autocast(images.device.type, enabled=False):
            floats = OrderedDict((name, each.float()) for name, each in maps.items())
            truth = [_truth(target, shown.shape[-2:]) for target in targets] if self.training else None
            proposals, of_rpn = self.rpn(ImageList(shown, sizes), floats, truth)
            found, of_heads = self.roi_heads(floats, proposals, sizes, truth)
        return {**of_rpn, **of_heads} if self.training else found


def _truth(target: Mapping[str, Tensor], size: Sequence[int]) -> dict[str, Tensor]:
    """Return a target as torchvision reads it: class 0 is the background, masks are as large as images."""
    own = {"boxes": target["boxes"], "labels": target["labels"] + 1}
    if "masks" in target:
        masks = target["masks"]
        missing = (0, max(0, size[1] - masks.shape[-1]), 0, max(0, size[0] - masks.shape[-2]))
        own["masks"] = F.pad(masks, missing)[..., : size[0], : size[1]]
    return own


def in_image(
    found: Mapping[str, Tensor], size: Sequence[int], shape: tuple[int, int]
) -> tuple[Tensor, Tensor | None]:
    """Move the detections of a resized image (h, w) to the image as it was.

    Returns:
        Boxes (d, 4) in its pixels, and masks (d, H, W), or None if there are none.
    """
    scale = torch.tensor([shape[1] / size[1], shape[0] / size[0]] * 2, device=found["boxes"].device)
    boxes = found["boxes"] * scale
    if "masks" not in found:
        return boxes, None
    return boxes, paste_masks_in_image(found["masks"], boxes, shape)[:, 0] > INK
