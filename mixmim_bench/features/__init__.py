"""Frozen features: which layers, one pass of a backbone over images, and what is kept of it on a disk."""

EXTRACTOR_VERSION = 1  # raised by hand when features change; tests/test_features.py holds their numbers

OWN = "own"  # the layer that a model's own head reads
LOGITS = "logits"
