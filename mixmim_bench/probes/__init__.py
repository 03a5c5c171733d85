"""Estimators on frozen features that follow the scikit-learn API, in memory or memory-mapped."""
