"""The counter-based generator: known answers, and numbers that are functions of their place."""

import math

import pytest
import torch
from scipy import stats

from torchivp.noise import philox as module
from torchivp.noise.philox import MASK, derived_seed, normals, philox, philox_tensors

# From Random123, the authors' own library.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    assert philox(counter, key) == answer


def test_tensors_agree_with_integers():
    generator = torch.Generator().manual_seed(3)
    blocks = torch.randint(2**63 - 1, (5,), generator=generator)
    nodes = torch.randint(2**63 - 1, (4, 1), generator=generator)
    seed = 0xF23456789ABCDEF0
    words = torch.stack(philox_tensors(blocks, nodes, seed))
    assert words.shape == (4, 4, 5)
    for i in range(4):
        for j in range(5):
            block, node = int(blocks[j]), int(nodes[i, 0])
            counter = (block & MASK, block >> 32, node & MASK, node >> 32)
            assert tuple(words[:, i, j].tolist()) == philox(counter, (seed & MASK, seed >> 32))


def test_tensors_known_answer():
    words = philox_tensors(torch.tensor([0]), torch.tensor([0]), 0)
    assert tuple(int(w) for w in words) == KNOWN[0][2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_are_normal(dtype):
    values = normals(11, [5, 6], range(20000), 3, dtype)
    assert values.shape == (2, 20000, 3) and values.dtype == dtype
    assert stats.kstest(values.flatten().double().numpy(), "norm").pvalue > 1e-3
    flat = values.permute(0, 2, 1).reshape(6, -1).double()
    assert (torch.corrcoef(flat) - torch.eye(6)).abs().max() < 0.04
    neighbours = values[0].flatten().double()
    for lag in (1, 2, 3, 4):
        assert abs(float((neighbours[lag:] * neighbours[:-lag]).mean())) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_rows_and_nodes_stand_alone(dtype, size):
    whole = normals(7, [3, 9, 2**50], range(101), size, dtype)
    assert torch.equal(whole[:, 13:57], normals(7, [3, 9, 2**50], range(13, 57), size, dtype))
    some = torch.tensor([100, 3, 3, 50, 0])
    assert torch.equal(whole[:, some], normals(7, [3, 9, 2**50], some, size, dtype))
    assert torch.equal(whole[:, 4:9], normals(7, [3, 9, 2**50], torch.arange(4, 9), size, dtype))
    assert torch.equal(whole[1:2], normals(7, torch.tensor([9]), range(101), size, dtype))
    assert torch.equal(whole[:, ::2], normals(7, [3, 9, 2**50], range(0, 101, 2), size, dtype))
    assert not torch.equal(whole, normals(8, [3, 9, 2**50], range(101), size, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parts_made_one_after_another_agree(dtype, monkeypatch):
    whole = normals(7, range(10), range(50), 3, dtype)
    monkeypatch.setattr(module, "CPU_BLOCKS", 7)
    assert torch.equal(whole, normals(7, range(10), range(50), 3, dtype))


def test_nothing_asked():
    assert normals(7, [1], range(0), 3, torch.float32).shape == (1, 0, 3)
    assert normals(7, [], range(4), 3, torch.float64).shape == (0, 4, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_words_give_finite_normals(dtype):
    for word in (0, MASK):
        out = torch.empty(1, 4, dtype=dtype)
        module._write_normals(out, *(torch.tensor([word]) for _ in range(4)))
        count = 2 if dtype == torch.float64 else 4
        assert torch.isfinite(out[:, :count]).all()
    tail = math.sqrt(2 * 53 * math.log(2))
    out = torch.empty(1, 2, dtype=torch.float64)
    module._write_normals(out, *(torch.tensor([0]) for _ in range(4)))
    assert float(out[0, 0]) == pytest.approx(tail)


def test_derived_seeds_differ():
    seeds = {derived_seed(seed, i, j) for seed in (0, 1, 2**64 - 1) for i in range(4) for j in range(4)}
    assert len(seeds) == 48 and all(0 <= seed < 2**64 for seed in seeds)
