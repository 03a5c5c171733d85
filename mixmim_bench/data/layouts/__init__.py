"""One module per layout: how the files of a dataset are arranged on disk."""
