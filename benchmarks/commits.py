"""torchivp as it is here, set against itself at another commit: `python -m benchmarks.commits --base main`.

Each side is a process with its own checkout, which computes only when it is asked to; they are asked in turns. The
cases are those of this checkout on both sides. A case that the other commit cannot solve is shown with its error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import cases, sde
from benchmarks.harness import Timing, in_turns, prepare, seconds

ROOT = Path(__file__).resolve().parent.parent


class Failed(Exception):
    """A case that one side cannot solve."""


class Side:
    """A process in which the torchivp of one checkout is timed.

    Args:
        name: what the table calls it.
        checkout: the root of the checkout.
    """

    def __init__(self, name: str, checkout: Path):
        self.name = name
        paths = os.pathsep.join([str(checkout / "src"), str(ROOT)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.commits", "--serve"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = Path(self._ask()["torchivp"])
        if not found.is_relative_to(checkout):
            raise RuntimeError(f"the torchivp of {name} must be that of {checkout}, but is {found}")

    def time(self, case: str, loops: int) -> float:
        """Seconds of processor time of a call, the mean of so many.

        Raises:
            Failed: the call raises an exception.
        """
        answer = self._ask({"case": case, "loops": loops})
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}")
        return answer["seconds"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, question: dict[str, Any] | None = None) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        if question is not None:
            print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {self.name} has ended with exit code {self._process.wait()}")
        return json.loads(answer)


def own_calls() -> dict[str, Any]:
    """What is timed, by name."""
    return cases.own_calls() | sde.own_calls()


def serve() -> None:
    """Answer questions, a line each, on standard output; what the cases print goes to standard error."""
    import torchivp

    answers, sys.stdout = sys.stdout, sys.stderr
    warnings.simplefilter("ignore")
    prepare()
    calls = own_calls()
    print(json.dumps({"torchivp": torchivp.__file__}), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer: dict[str, Any] = {"seconds": seconds(calls[question["case"]], question["loops"])}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


@contextmanager
def checkout_of(commit: str) -> Iterator[Path]:
    """A checkout of a commit in a temporary folder, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="torchivp-") as folder:
        place = Path(folder).resolve() / "base"
        _git("worktree", "add", "--quiet", "--detach", str(place), commit)
        try:
            yield place
        finally:
            _git("worktree", "remove", "--force", str(place))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def compare_commits(base: str, names: list[str], repeats: int) -> dict[str, Timing | str]:
    """The times of each case here (`ours`) and at `base` (`theirs`), or why there are none."""
    found: dict[str, Timing | str] = {}
    with checkout_of(base) as checkout:
        here, there = Side("here", ROOT), Side(base, checkout)
        try:
            for name in names:
                try:
                    found[name] = in_turns(
                        lambda loops, name=name: here.time(name, loops),
                        lambda loops, name=name: there.time(name, loops),
                        repeats,
                    )
                except Failed as failed:
                    found[name] = str(failed)
        finally:
            here.close()
            there.close()
    return found


def table_of(found: dict[str, Timing | str], base: str) -> Table:
    """What was measured, a row for each case."""
    table = Table(
        title=f"Processor time of a call; ratio: {base} / here, above 1 where it is faster here",
        caption="minima: of the shortest sample of each side; median over the pairs (smallest .. largest)",
    )
    table.add_column("case", no_wrap=True)
    for heading in ("here", base, "minima", "median", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, timing in found.items():
        if isinstance(timing, str):
            table.add_row(name, timing)
            continue
        table.add_row(
            name,
            f"{1e3 * timing.median_ours:.2f} ms",
            f"{1e3 * timing.median_theirs:.2f} ms",
            f"{min(timing.theirs) / min(timing.ours):.3f}",
            f"{timing.ratio:.3f}",
            f"{min(timing.ratios):.2f} .. {max(timing.ratios):.2f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.commits", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--base", default="main", metavar="COMMIT", help="what to compare this checkout with (main)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the cases whose name contains this")
    parser.add_argument("--repeats", type=int, default=15, metavar="N", help="pairs of samples for each case (15)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    every = list(own_calls())
    names = [name for name in every if options.only.lower() in name.lower()]
    if not names:
        parser.error(f"no case is called {options.only!r}; there are: {', '.join(every)}")
    try:
        commit = _git("rev-parse", "--short", "--verify", f"{options.base}^{{commit}}")
    except subprocess.CalledProcessError:
        parser.error(f"there is no commit {options.base!r}")
    label = options.base if options.base.startswith(commit) else f"{options.base} ({commit})"
    Console(width=None if sys.stdout.isatty() else 120).print(
        table_of(compare_commits(options.base, names, options.repeats), label)
    )


if __name__ == "__main__":
    main()
