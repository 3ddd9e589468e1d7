"""The loop, optimisers, checkpoints and evaluation."""
