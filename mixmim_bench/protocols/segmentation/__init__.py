"""Protocols for segmentation: a class for each pixel."""
