"""Samplers by name: what proposes the points of a search, where it is not Optuna's study itself."""
