"""Frozen features: which layers, one pass of a backbone over images, and what is kept of it on a disk."""

# raised by hand when features change (2: floating-point images); tests/test_features.py holds their numbers
EXTRACTOR_VERSION = 2

OWN = "own"  # the layer that a model's own head reads
LOGITS = "logits"
