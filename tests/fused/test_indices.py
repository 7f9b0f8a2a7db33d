"""Indices that are tensors of no dimension, compared with the same indices as numbers."""

import pytest
import torch

from torchivp.fused.indices import ByNumbersOfTensors

ONE, FEW, MASK = torch.tensor(1), torch.tensor([0, 2]), torch.tensor([True, False, True])
INDICES = {
    "alone": (ONE,),
    "before many": (ONE, FEW),
    "after many": (FEW, ONE),
    "apart from many": (ONE, slice(None), FEW),
    "from the end": (..., ONE),
    "around an ellipsis": (FEW, ..., ONE),
    "a new dimension": (None, ONE, 2),
    "after a slice": (slice(1, 3), ONE, ...),
    "after a mask": (MASK, ONE),
    "beside a list": (ONE, ..., [0, 1]),
    "twice": (0, ONE, None, ONE),
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_they_are_indices_of_one_element(index):
    x = torch.arange(120.0).reshape(3, 4, 5, 2)
    expected = x[tuple(1 if i is ONE else i for i in index)]
    with ByNumbersOfTensors():
        found = x[index]
    assert torch.equal(found, expected)
