"""Datasets: layouts on disk, splits, images, targets, transforms and batches."""

EXACT, FAST, REDUCED = RESIZES = (
    "exact",
    "fast",
    "reduced",
)  # ways to resize, see `transforms.eval_transform`
