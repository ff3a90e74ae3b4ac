"""Training a network: recipe, loop, evaluation, checkpoints, reports."""
