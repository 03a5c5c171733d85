"""Backbones. Importing this package registers MixMIM and `pixels` with timm."""

from mixmim_bench.models.mixmim import MixMIM
from mixmim_bench.models.pixels import Pixels

__all__ = ["MixMIM", "Pixels"]
