"""Searching for the best way to distil a student: Ray Tune, Optuna and MLflow around kdcore.

Read `experiment.py` first (what a user writes), then `space.py`, `launch.py` and `trial.py`.
"""
