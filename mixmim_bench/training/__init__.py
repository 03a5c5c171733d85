"""The training loop, objectives, and heads behind frozen backbones."""
