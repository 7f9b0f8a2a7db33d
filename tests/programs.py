"""Programs that tests run."""

import subprocess
import sys
from typing import Any

HANG = 600
"""Seconds after which a program is taken to hang. No test fails for being slow."""


def run_program(command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return what it wrote, whatever its exit code."""
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False, **options)


def launch(script: Any, *arguments: Any, processes: int = 1) -> list[str]:
    """The command that runs a script in processes that reach one another, without Python's shutdown at its end.

    A thread of gloo that lets go of its last tensor while Python shuts down aborts the process
    (pytorch/pytorch#179291), which says nothing of what the script did.
    """
    program = (
        "import os, runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__');"
        " sys.stdout.flush(); os._exit(0)"
    )
    python = [sys.executable, "-c", program, script, *arguments]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    return [str(word) for word in ([*launcher, "--no-python", *python] if processes > 1 else python)]
