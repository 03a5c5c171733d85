"""Protocols for images with several labels each."""
