"""Linear-probe and transfer benchmarks for vision backbones, built around MixMIM."""

__version__ = "0.1.0"
