"""The search space: what is chosen for each trial, and from what."""
