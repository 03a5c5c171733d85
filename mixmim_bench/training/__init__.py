"""The training loop, what it minimises, and heads behind frozen backbones."""
