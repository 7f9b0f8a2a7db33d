"""The examples in docstrings, which the reference shows, do what they say."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest
import torch

import torchivp

ROOT = Path(torchivp.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))

RESULTS = {"BatchSolution", "EventLog", "FitResult", "Solution", "Stats", "Status", "SteadyState"}
RESULTS |= {"Outcome", "Capability", "DataError", "SolveError"}
"""What calls return or raise, and nobody makes."""
PLAIN = {"BaseBrownian", "BaseSDE", "BrownianPath", "BrownianTree", "ConstantSteps", "Direct", "PIController"}
PLAIN |= {"ReverseBrownian", "SDEIto", "SDEStratonovich", "brownian_interval_like"}
"""What is used like something else that has an example, or in the example of something else."""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_print_what_they_say(path):
    module = importlib.import_module(
        ".".join(["torchivp", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    )
    torch.manual_seed(0)
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def test_what_users_call_has_an_example():
    named = [getattr(torchivp, name) for name in torchivp.__all__ if name not in RESULTS | PLAIN]
    called = [each for each in named if inspect.isfunction(each) or inspect.isclass(each)]
    assert not [each.__name__ for each in called if ">>> " not in (inspect.getdoc(each) or "")]
