"""Distillation: a trial's configuration, its run, and a quick check that its methods work."""
