"""Frozen features: layers, extraction and the feature cache."""

# bump when features change (2: floating-point images); tests/test_features.py holds reference values
EXTRACTOR_VERSION = 2

OWN = "own"  # the input of the model's own head
LOGITS = "logits"
