"""Linear systems with one matrix and many right-hand sides, within any number of transforms."""

import torch
from torch.func import jacfwd, jacrev, vmap

from torchivp.methods.factorised import Factorised

D = torch.float64


def solve(matrix, right):
    return Factorised(matrix).solve(right.unsqueeze(-1)).squeeze(-1)


def test_nested_transforms():
    """Whichever of matrix and right-hand side is batched at which level; and its derivatives."""
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 4, 4, dtype=D, generator=generator)
    rights = torch.randn(3, 5, 4, dtype=D, generator=generator)
    inverse = torch.linalg.inv(matrices)
    expected = torch.einsum("mij,mbj->mbi", inverse, rights)
    across = torch.einsum("mij,bj->mbi", inverse, rights[0])
    over_rights = vmap(solve, (None, 0))
    torch.testing.assert_close(vmap(solve)(matrices, rights[:, 0]), expected[:, 0])
    torch.testing.assert_close(vmap(over_rights)(matrices, rights), expected)
    torch.testing.assert_close(vmap(over_rights, (0, None))(matrices, rights[0]), across)
    torch.testing.assert_close(vmap(vmap(solve, (0, None)), (None, 0), 1)(matrices, rights[0]), across)
    for jacobian in (jacrev, jacfwd):
        torch.testing.assert_close(vmap(jacobian(solve, 1))(matrices, rights[:, 0]), inverse)
        found = vmap(vmap(jacobian(solve, 1), (None, 0)))(matrices, rights)
        torch.testing.assert_close(found, inverse.unsqueeze(1).expand(-1, 5, -1, -1))


def test_a_singular_matrix_gives_what_is_not_finite():
    matrix = torch.tensor([[[1.0, 2.0], [2.0, 4.0]], [[2.0, 0.0], [0.0, 4.0]]])
    found = solve(matrix, torch.ones(2, 2))
    assert not found[0].isfinite().all()
    assert found[1].tolist() == [0.5, 0.25]
