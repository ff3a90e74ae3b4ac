"""Searching for the best way to distil a student: Ray Tune, Optuna and MLflow around kdcore.

Read `experiment.py` first (what a user writes), then `space.py`, `launch.py` and `trial.py`.
"""

import os
import sys
from pathlib import Path

# Read when torch is loaded: how often a thread looks whether the others are done before it sleeps.
# Sleeping at once costs an idle machine a tenth of a step. Never sleeping halves the rate where
# anything else needs a core; so many looks lose nothing in either case.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

# Read when a process starts, so it holds for the trials, not for this one: glibc asks for huge
# pages, with which a step on a CPU is some 4 % faster.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")

# Read where a trial's process is taken over by the next trial. After Tune's own two seconds a trial
# that was stopped may still be ending, where the cores are busy; then the next one would be lost.
os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")

# A cluster asks for its token, and Ray sends it only when told so before it is imported.
# Where Ray was imported earlier, the mode stays: what Ray starts and this process must agree.
if "ray" not in sys.modules and (
    {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    or Path("~/.ray/auth_token").expanduser().exists()
):
    os.environ.setdefault("RAY_AUTH_MODE", "token")
