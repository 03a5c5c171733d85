"""Estimators on frozen features, after scikit-learn's conventions; in memory or mapped from a disk."""
