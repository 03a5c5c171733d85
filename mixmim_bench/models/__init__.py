"""Backbones. Importing this package registers the MixMIM models with timm."""

from mixmim_bench.models.mixmim import MixMIM

__all__ = ["MixMIM"]
