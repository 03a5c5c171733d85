"""Find and download published weights. Does not import torch."""
