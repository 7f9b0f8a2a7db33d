"""Every test starts from the same random state, on one thread, and leaves torch as it found it."""

import gc
import os
import random

import numpy
import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)


LONG = ("test_documentation", "test_examples")
"""Modules with tests of many seconds, which are begun first, so that no worker is left alone with them."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONG)


def pytest_collection_finish():
    """Leave what there is by now out of garbage collections, and have fewer of them: they take a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def same_start():
    """Seed every generator a test may draw from; put back the default dtype it may have changed."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture(scope="module")
def few_objects():
    """Leave all that exists by now out of garbage collections and of counts of objects, which makes them quick."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
