"""Searching for the best way to distil a student: Ray Tune, Optuna and MLflow around kdcore."""
