"""Metrics, intervals, paired tests, predictions, and choices on val."""
