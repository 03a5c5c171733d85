"""Targets: the labels of images, with an interface like `Images`.

Each kind of target is a class that defines how its images are split, fingerprinted and counted, how targets
are loaded, and how they are collated into a batch.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self

import numpy as np


class Targets(Protocol):
    """The targets of n images."""

    def __len__(self) -> int: ...

    def load(self, row: int) -> Any:
        """Return the target of one image, as passed to the transform."""

    def collate(self, loaded: Sequence[Any]) -> Any:
        """Collate the transformed targets of a batch; the result can be sliced by image."""

    def take(self, rows: np.ndarray) -> Self:
        """Select rows in the given order."""

    def joined(self, others: Sequence[Self]) -> Self:
        """Append targets of the same kind."""

    def contents(self) -> Iterator[str]:
        """Yield a string for each target, distinct for distinct targets, for fingerprints and stamps."""

    def summary(self) -> bytes:
        """Hash all targets."""

    def strata(self) -> np.ndarray | None:
        """Return the classes (n,) used to stratify slices; None to order images by hash alone."""

    def per_class(self, num_classes: int) -> np.ndarray | None:
        """Count the images of each class (K,); None if that requires loading them."""

    def first_wrong(self, num_classes: int, images: Any) -> str | None:
        """Describe the first target that is invalid for K classes, by the name of its image, if any."""

    def remarks(self) -> list[str]:
        """Describe what is no problem but should be known, such as objects that cannot be learnt."""


class _ArrayTargets:
    """Targets in an array, one per row."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def load(self, row: int) -> Any:
        return self.values[row]

    def collate(self, loaded: Sequence[Any]) -> Any:
        import torch  # not needed to list datasets

        return torch.from_numpy(np.asarray(loaded, dtype=self.values.dtype))

    def take(self, rows: np.ndarray) -> Self:
        return type(self)(self.values[rows])

    def joined(self, others: Sequence[Self]) -> Self:
        return type(self)(np.concatenate([self.values, *(each.values for each in others)]))

    def contents(self) -> Iterator[str]:
        return map(str, self.values.tolist())

    def remarks(self) -> list[str]:
        return []

    def summary(self) -> bytes:
        return hashlib.sha256(f"{self.values.shape}".encode() + self.values.tobytes()).digest()


class Labels(_ArrayTargets):
    """One class per image: values (n,) int64."""

    def strata(self) -> np.ndarray | None:
        return self.values

    def per_class(self, num_classes: int) -> np.ndarray | None:
        valid = self.values[(self.values >= 0) & (self.values < num_classes)]
        return np.bincount(valid, minlength=num_classes)

    def first_wrong(self, num_classes: int, images: Any) -> str | None:
        wrong = np.flatnonzero((self.values < 0) | (self.values >= num_classes))
        return _describe_wrong(self.values, wrong, num_classes, images)


class LabelVectors(_ArrayTargets):
    """Several classes per image: values (n, K) int64: 1, 0, or -1 for VOC's difficult objects."""

    def strata(self) -> np.ndarray | None:
        return None

    def per_class(self, num_classes: int) -> np.ndarray | None:
        del num_classes
        return (self.values == 1).sum(0)

    def first_wrong(self, num_classes: int, images: Any) -> str | None:
        values = self.values
        wrong = np.flatnonzero(((values < -1) | (values > 1)).any(1) | (values.shape[1] != num_classes))
        return _describe_wrong(values, wrong, num_classes, images)


def _describe_wrong(values: np.ndarray, wrong: np.ndarray, num_classes: int, images: Any) -> str | None:
    if not len(wrong):
        return None
    row = int(wrong[0])
    return (
        f"the label {values[row]} of {images.name(row)} is not one of the {num_classes} classes "
        f"(0 to {num_classes - 1})"
    )


def as_targets(values: Targets | np.ndarray) -> Targets:
    """Convert arrays (n,) to `Labels` and arrays (n, K) to `LabelVectors`; return other targets unchanged."""
    if not isinstance(values, np.ndarray):
        return values
    return Labels(values) if values.ndim == 1 else LabelVectors(values)
