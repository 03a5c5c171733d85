"""Datasets: layouts on disk, splits, images, targets, transforms and batches."""

FUSED = "fused"  # resize and crop in one step, see `transforms.eval_transform`
