"""Searching for the best way to distil a student: Ray Tune, Optuna and MLflow around kdcore.

Read `experiment.py` first (what a user writes), then `space.py`, `launch.py` and `trial.py`.
"""

import os
import sys
from pathlib import Path

# Read when torch is loaded. Threads that wait by spinning are fast on an idle machine, and up to
# thirty times slower where trials share cores with anything else; sleeping ones are never slow.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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
