"""Every test starts from the same random state, on one thread, and leaves torch as it found it."""

import gc
import os
import random

import numpy
import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)


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
