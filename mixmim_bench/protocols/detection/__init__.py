"""Protocols for detection: boxes, classes and masks of objects."""
