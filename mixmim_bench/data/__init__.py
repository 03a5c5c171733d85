"""Task files, the layouts in which datasets lie on a disk, splits, images and transforms."""
