"""Training again what a record names: with fresh seeds, or once more as it was."""
