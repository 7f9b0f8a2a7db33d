"""Programs that tests run."""

import subprocess
from typing import Any

HANG = 600
"""Seconds after which a program is taken to hang. No test fails for being slow."""


def run_program(command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return what it wrote, whatever its exit code."""
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False, **options)
