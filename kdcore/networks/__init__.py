"""Classifiers, on disk and in use, and what they cost."""
