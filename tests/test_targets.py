"""Targets other than labels: masks that are loaded, split, transformed and trained on like images.

The masks here are a kind of their own: what is tested is that nothing on their way assumes labels.
"""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torchvision import tv_tensors
from torchvision.transforms import v2

from mixmim_bench.data.images import Arrays, Part, join
from mixmim_bench.data.index import stamp
from mixmim_bench.data.loading import ImageDataset, batches, in_groups
from mixmim_bench.data.slices import Slice, stratified_order
from mixmim_bench.data.targets import Labels, LabelVectors, as_targets
from mixmim_bench.machine import Machine
from mixmim_bench.progress import Silent
from mixmim_bench.training import contract, trainer

OPEN = 255


class Masks:
    """A mask per image: where a digit has ink, and what is open."""

    def __init__(self, masks):
        self.masks = masks

    def __len__(self):
        return len(self.masks)

    def load(self, row):
        return tv_tensors.Mask(self.masks[row])

    def collate(self, loaded):
        return torch.stack([mask.as_subclass(torch.Tensor) for mask in loaded])

    def take(self, rows):
        return Masks(self.masks[rows])

    def joined(self, others):
        return Masks(np.concatenate([self.masks, *(other.masks for other in others)]))

    def contents(self):
        return (hashlib.sha256(mask.tobytes()).hexdigest()[:16] for mask in self.masks)

    def summary(self):
        return hashlib.sha256(self.masks.tobytes()).digest()

    def strata(self):
        return None

    def per_class(self, _):
        return None

    def remarks(self):
        return []

    def first_wrong(self, *_):
        return None


class Segmenting:
    """Cross-entropy over the pixels that are not open."""

    together = 1

    def prepare(self, images, targets):
        return images, targets

    def weight(self, targets):
        return int((targets != OPEN).sum())

    def loss(self, network, images, targets):
        return F.cross_entropy(network(images), targets.long(), ignore_index=OPEN)


class Together:
    """An image and its mask, through the same random flip."""

    def __init__(self):
        self.steps = v2.Compose(
            [v2.ToImage(), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
        )

    def __call__(self, image, mask):
        return self.steps(image, mask)


def part_with_masks(n=24):
    pixels = (load_digits().images[:n] * 15.9).astype(np.uint8)
    masks = (pixels > 100).astype(np.uint8)
    masks[:, 0] = OPEN
    masks[: n // 2, :5] = OPEN  # so that images count differently
    return Part(np.arange(n).astype(str), Masks(masks), Arrays(pixels, "digits"))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_and_its_mask_are_transformed_together(workers):
    part = part_with_masks()
    dataset = ImageDataset(part.images, Together(), part.targets, seed=3)
    flipped = 0
    for batch in batches(dataset, in_groups(range(len(part)), 5), workers):
        ink = (batch.images[:, 0] * 255 > 100).to(torch.uint8)
        valid = batch.targets != OPEN
        assert torch.equal(ink[valid], batch.targets[valid])
        for row, image in zip(batch.rows.tolist(), batch.images, strict=True):
            flipped += not np.array_equal(
                (image[0] * 255).round().numpy().astype(np.uint8), part.images.pixels[row]
            )
    assert 3 < flipped < 21


def train_on_masks(at_once, monkeypatch):
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 2, 3, padding=1)
    monkeypatch.setattr(trainer, "_timm_optimizer", lambda n, s: torch.optim.SGD(n.parameters(), lr=s.lr))
    schedule = contract.Schedule(epochs=3, batch_size=12, lr=0.5)
    environment = contract.Environment(machine=Machine(device="cpu"), seed=0, stages=Silent())
    training = trainer.Trainer(
        network, part_with_masks(), Together(), Segmenting(), schedule, environment, at_once
    )
    losses = training.run("segmenting", 0.0)
    return losses, torch.cat([p.detach().flatten() for p in network.parameters()])


def test_pieces_of_a_batch_count_by_their_valid_pixels(monkeypatch):
    whole, weights = train_on_masks(12, monkeypatch)
    pieces, same = train_on_masks(5, monkeypatch)
    np.testing.assert_allclose(pieces, whole, rtol=1e-5)
    torch.testing.assert_close(same, weights, atol=1e-6, rtol=1e-4)
    assert whole[-1] < whole[0]


def test_masks_are_split_by_hash_stamped_and_joined():
    part = part_with_masks()
    order = stratified_order(part.ids, part.targets.strata())
    rows = Slice.parse("all[:50%]").rows(order, part.targets.strata())
    half = part.take(rows)
    assert len(half.targets) == 12 and np.array_equal(half.targets.masks, part.targets.masks[rows])
    both = join([half, half])
    assert len(both.targets) == len(both) == 24
    other = Part(part.ids, Masks(1 - part.targets.masks), part.images)
    assert stamp(part) != stamp(other)
    with pytest.raises(TypeError, match="Masks are not class labels"):
        _ = part.labels
    with pytest.raises(ValueError, match="exactly one label per image"):
        Slice.parse("all[:2/class]").rows(order, part.targets.strata())


def test_arrays_become_labels_or_vectors():
    labels, vectors = as_targets(np.array([2, 0, 1, 0])), as_targets(np.array([[1, 0], [-1, 1]]))
    assert isinstance(labels, Labels) and isinstance(vectors, LabelVectors)
    assert list(labels.contents()) == ["2", "0", "1", "0"]
    assert list(vectors.contents()) == ["[1, 0]", "[-1, 1]"]
    assert labels.per_class(4).tolist() == [2, 1, 1, 0] and vectors.per_class(2).tolist() == [1, 1]
    images = Arrays(np.zeros((4, 2, 2), dtype=np.uint8), "made")
    assert labels.first_wrong(2, images) == "the label 2 of made[0] is not one of the 2 classes (0 to 1)"
    assert labels.first_wrong(3, images) is None
    assert "made[0]" in vectors.first_wrong(3, images) and vectors.first_wrong(2, images) is None
    assert as_targets(labels) is labels
