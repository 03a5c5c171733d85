"""Task files, the layouts in which datasets lie on a disk, splits, images and transforms."""

FUSED = "fused"  # resize and crop in one step, see `transforms.eval_transform`
