"""Protocols for images with one label each."""
