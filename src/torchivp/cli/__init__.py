"""The command `torchivp`: fit a model to a table, list the models, simulate one."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows the name of the program; None for that of this process.

    Returns:
        The exit code: 0 for success, 1 for a fit or a solution that did not succeed, 2 for a request that makes no
        sense, 130 for an interruption.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        from torchivp.cli.app import run
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        if given == ["versions"]:
            from torchivp.cli.versions import versions

            versions()
            return 0
        print("torchivp: the command line needs typer and rich: pip install 'torchivp[cli]'", file=sys.stderr)
        return 2
    return run(given)
