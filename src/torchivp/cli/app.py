"""The application: its commands, and how errors become one line on stderr."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import torchivp
from torchivp.cli import fit, models, simulate
from torchivp.cli.versions import versions

START = """Start here:

torchivp models

torchivp simulate lotka-volterra --t 0,20 --plot sim.png --out sim.csv

torchivp fit --help"""

app = typer.Typer(
    name="torchivp",
    epilog=START,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=fit.EXAMPLES)(fit.fit)
app.command(epilog=models.EXAMPLES)(models.models)
app.command(epilog=simulate.EXAMPLES)(simulate.simulate)
app.command()(versions)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"torchivp {torchivp.__version__}")
        raise typer.Exit


@app.callback()
def torchivp_command(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Fit differential equations to data, and simulate them."""


def run(arguments: Sequence[str]) -> int:
    """Run a command line; what goes wrong becomes one line on stderr.

    Args:
        arguments: what follows the name of the program.

    Returns:
        The exit code.
    """
    command_line = shlex.join(["torchivp", *arguments])
    try:
        code = app(list(arguments) or ["--help"], prog_name="torchivp", standalone_mode=False, obj=command_line)
    except typer.TyperException as error:
        return _complain(error.format_message(), 2)
    except RuntimeError as error:  # the equation cannot be solved
        return _complain(str(error), 1)
    except OSError as error:
        return _complain(f"{error.filename or 'system'}: {error.strerror or error}", 2)
    except (ValueError, TypeError, ImportError) as error:  # the library's way to refuse what it was given
        return _complain(str(error), 2)
    return code or 0


def _complain(message: str, code: int) -> int:
    """Say what is wrong, in one line, and return the exit code."""
    print("torchivp:", " ".join(message.split()), file=sys.stderr)
    return code
