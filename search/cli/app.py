"""The command `kdsearch`: its subcommands, and how it ends."""

import errno
import sys
import traceback
from importlib.metadata import version
from typing import Annotated

import typer

from kdcore.contract.plugin_faults import ending_hangs, fault_in_plugin
from search import environment
from search.cli import (
    browsing,
    launching,
    lists,
    picking,
    plugins,
    remote,
    reproducing,
    starting,
    status,
    ui,
)
from search.errors import ExperimentError, KdsearchError, SearchFailedError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

_PANELS = {
    "Search": (
        *(starting.init, launching.launch, launching.resume),
        *(launching.confirm, launching.check),
    ),
    "Results": (
        *(browsing.leaderboard, browsing.compare, browsing.explain, browsing.replay),
        *(ui.ui, picking.best, picking.rerun, browsing.cache),
    ),
    "Published tables": (reproducing.reproduce,),
    "Clusters": (remote.submit, status.status, remote.logs, remote.stop),
    "Catalogue": (lists.methods, lists.backbones, lists.describe),
    "Your own code": (plugins.check_plugin,),
}
for panel, commands in _PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(plugins.new, name="new", rich_help_panel="Your own code")


def _show_version(asked: bool) -> None:
    if asked:
        print(f"kdsearch {version('kdsearch')}")
        raise typer.Exit


@app.callback()
def kdsearch(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Finds the best small vision network that a big one can teach."""


# A disk that is full or may not be written to is nobody's defect, wherever it is noticed.
_OF_THE_DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def main() -> None:
    """Runs the command. A user's mistake ends with one message and status 2, a search that failed
    with status 1, a defect of this package with its traceback and status 70."""
    environment.prepare()
    try:
        with ending_hangs():
            app()
    except KeyboardInterrupt:
        sys.exit(130)
    except ExperimentError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KdsearchError as error:
        print(f"kdsearch: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, SearchFailedError) else 2)
    except (Exception, SystemExit) as error:
        if fault := fault_in_plugin(error):
            print(f"kdsearch: your own code: {fault}", file=sys.stderr)
            sys.exit(2)
        if isinstance(error, SystemExit):
            raise
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            print(f"kdsearch: {error}", file=sys.stderr)
            sys.exit(2)
        traceback.print_exc()
        print(
            "kdsearch: this is a defect of kdsearch, not a mistake of yours; please report it "
            "with the lines above",
            file=sys.stderr,
        )
        sys.exit(70)
