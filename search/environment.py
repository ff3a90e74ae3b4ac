"""What libraries read from the environment when they are loaded, or when a process starts.

`prepare` is called by the command before anything else, and by the functions of the Python
interface; to import a module of this package changes nothing. What its user has set stays.
"""

import os
import sys
from pathlib import Path

_DEFAULTS = {
    # PyTorch: how often a waiting thread polls before it sleeps. Sleeping at once halves the rate
    # of small networks on an idle machine; with ten times as many polls it falls to a sixth where
    # anything else needs a core. `tests/benchmarks/waiting.py` has the figures.
    "GOMP_SPINCOUNT": "3000",
    # glibc asks for huge pages, with which a step on a CPU is some 4 % faster. It is read when a
    # process starts, so it holds for the trials, not for this one.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # Ray, where a trial's process is taken over by the next trial. After Tune's own two seconds a
    # trial that was stopped may still be ending, where the cores are busy; then the next one would
    # be lost.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    # Ray hides GPUs only from a process that has a share of some; without it, one that has none
    # sees them all.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # Tune's own CSV, JSON and TensorBoard files repeat what MLflow keeps.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune writes all that it knows of all trials again every few seconds; nothing here reads it.
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    # The session has a handler of its own, which says that the search is stopping.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # For how long a batch, a call or an import may stay in a user's own code before it is given up
    # as hung.
    "KDSEARCH_PLUGIN_SECONDS": "600",
    # Usage reports leave the machine.
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Two quick retries: the delivery queue tries again by itself.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

# What the processes of trials read; where Ray starts them on this machine they inherit it.
_OF_WORKERS = (
    "GOMP_SPINCOUNT",
    "GLIBC_TUNABLES",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
    "KDSEARCH_PLUGIN_SECONDS",
)


def prepare() -> None:
    """Sets what is not set yet; to call it twice does no harm."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    # A cluster asks for its token, and Ray sends it only when told so before it is imported.
    # Where Ray was imported earlier, the mode stays: what Ray starts and this process must agree.
    if "ray" not in sys.modules and (
        {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
        or Path("~/.ray/auth_token").expanduser().exists()
    ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def of_workers() -> dict[str, str]:
    """The variables for the trials' processes on other machines."""
    return {name: os.environ.get(name, _DEFAULTS[name]) for name in _OF_WORKERS}


def own_process(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package, also where a folder of its user has the
    package's name: Python's own `-m` looks there first."""
    root = str(Path(__file__).parents[1])
    code = (
        f"import runpy, sys; sys.path.append({root!r}); "
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    return [sys.executable, "-P", "-c", code, *arguments]
