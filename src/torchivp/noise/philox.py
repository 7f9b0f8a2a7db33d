"""Standard normals that are a function of their place, from the counter-based generator Philox4x32-10."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK = 0xFFFFFFFF

# Counters in work at once: what they need stays in a processor's cache. An accelerator takes more.
CPU_BLOCKS = 1 << 14
ACCELERATOR_BLOCKS = 1 << 22


def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """The four words of 32 bits that belong to a counter of four words and a key of two."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    return c0, c1, c2, c3


def derived_seed(seed: int, first: int, second: int) -> int:
    """A seed of 64 bits for the part of a path that two numbers name, of at most 64 and 63 bits."""
    second |= 1 << 63  # away from the counters of the normals, whose nodes have this bit clear
    words = philox((*_words(first), *_words(second)), _words(seed))
    return words[0] | words[1] << 32


def philox_tensors(blocks: Tensor, nodes: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words of each counter (low word of the block, high word, low word of the node, high word).

    Args:
        blocks: numbers of at most 63 bits, int64, of a shape that broadcasts with that of `nodes`.
        nodes: numbers of at most 63 bits, int64.
        seed: the key, 64 bits.

    Returns:
        Four int64 tensors of numbers below 2^32, of the broadcast shape.
    """
    shape = torch.broadcast_shapes(blocks.shape, nodes.shape)
    even, odd, product = (torch.empty((2, *shape), dtype=torch.int64, device=nodes.device) for _ in range(3))
    even[0], odd[0] = blocks & MASK, blocks >> 32
    even[1], odd[1] = nodes & MASK, nodes >> 32
    multipliers, keys = _round_numbers(seed, nodes.device)
    factors = (2, *[1] * len(shape))
    # The words 0 and 2, and the words 1 and 3, change places in each round: here they stay, and the multipliers and
    # keys change places instead. The odd words keep bits above the 32nd, which the mask removes when they are used.
    for i in range(ROUNDS):
        torch.mul(even, multipliers[i].view(factors), out=product)
        torch.bitwise_right_shift(product, 32, out=even)
        even[0].bitwise_xor_(odd[1])
        even[1].bitwise_xor_(odd[0])
        even.bitwise_xor_(keys[i].view(factors)).bitwise_and_(MASK)
        odd, product = product, odd
    odd.bitwise_and_(MASK)
    return even[0], odd[0], even[1], odd[1]


def _round_numbers(seed: int, device: torch.device) -> Tensor:
    """The multipliers and the keys, [2, rounds, 2], in the order in which `philox_tensors` has the words."""
    low, high = _words(seed)
    keys = [((low + i * KEY_STEPS[0]) & MASK, (high + i * KEY_STEPS[1]) & MASK) for i in range(ROUNDS)]
    turned = [
        [MULTIPLIERS[:: 1 - 2 * (i % 2)] for i in range(ROUNDS)],
        [k[:: 2 * (i % 2) - 1] for i, k in enumerate(keys)],
    ]
    return torch.tensor(turned, dtype=torch.int64, device=device)


def normals(
    seed: int,
    nodes: Sequence[int] | Tensor,
    rows: Tensor | range,
    size: int,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normals, each a function of the seed, its node, its row and its place in the row.

    Which other nodes and rows are asked for changes nothing, nor does the device, but for the rounding of logarithms
    and cosines. `size` is part of what names a number.

    Args:
        seed: of 64 bits.
        nodes: numbers of at most 63 bits.
        rows: row numbers, not negative. Those that go up by ones are fastest.
        size: how many numbers a row has.
        dtype: torch.float64, whose numbers have 53 random bits, or torch.float32, whose numbers have 32.
        device: where the numbers are wanted.

    Returns:
        A tensor of shape [nodes, rows, size].
    """
    device = torch.device("cpu" if device is None else device)
    nodes = torch.as_tensor(nodes, dtype=torch.int64, device=device)
    shape = (len(nodes), len(rows), size)
    rows = run_of_rows(rows)
    if isinstance(rows, range):
        return _run_of_normals(seed, nodes, rows.start * size, len(rows) * size, dtype).view(shape)
    per_block = _per_block(dtype)
    rows = rows.to(device=device, dtype=torch.int64)
    places = (rows[:, None] * size + torch.arange(size, device=device)).flatten()
    blocks, where = torch.unique(torch.div(places, per_block, rounding_mode="floor"), return_inverse=True)
    values = _block_normals(seed, nodes, blocks, dtype)
    return values[:, where * per_block + places % per_block].view(shape)


def run_of_rows(rows: Tensor | range) -> Tensor | range:
    """Row numbers as a range, if they go up by ones."""
    if isinstance(rows, range) and rows.step == 1:
        return rows
    if isinstance(rows, range) or len(rows) == 0:
        return torch.tensor(list(rows), dtype=torch.int64) if len(rows) else range(0)
    start = int(rows[0])
    run = torch.arange(start, start + len(rows), device=rows.device)
    return range(start, start + len(rows)) if torch.equal(rows.to(run.dtype), run) else rows


def _run_of_normals(seed: int, nodes: Tensor, start: int, count: int, dtype: torch.dtype) -> Tensor:
    """The normals of the places from `start` on."""
    per_block = _per_block(dtype)
    first, last = start // per_block, -(-(start + count) // per_block)
    blocks = torch.arange(first, last, device=nodes.device)
    values = _block_normals(seed, nodes, blocks, dtype)
    skipped = start - first * per_block
    return values[:, skipped : skipped + count].contiguous()


def _block_normals(seed: int, nodes: Tensor, blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """All normals of the blocks, [nodes, blocks times normals in one], made a part at a time."""
    per_block = _per_block(dtype)
    out = torch.empty(len(nodes), len(blocks), per_block, dtype=dtype, device=nodes.device)
    limit = CPU_BLOCKS if nodes.device.type == "cpu" else ACCELERATOR_BLOCKS
    blocks_at_once = max(1, min(len(blocks), limit))
    nodes_at_once = max(1, limit // blocks_at_once)
    for i in range(0, len(nodes), nodes_at_once):
        for j in range(0, len(blocks), blocks_at_once):
            words = philox_tensors(blocks[j : j + blocks_at_once], nodes[i : i + nodes_at_once, None], seed)
            _write_normals(out[i : i + nodes_at_once, j : j + blocks_at_once], *words)
    return out.flatten(1)


def _write_normals(out: Tensor, w0: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> None:
    """The normals of some counters' words: two in double precision, or four in single."""
    if out.dtype == torch.float64:
        # 52 bits and a half of the last: strictly between 0 and 1, the smallest 2^-53.
        first = (w0.bitwise_left_shift_(20).add_(w1.bitwise_right_shift_(12))).to(torch.float64)
        second = (w2.bitwise_left_shift_(20).add_(w3.bitwise_right_shift_(12))).to(torch.float64)
        _box_muller(out, 0, first.add_(0.5).mul_(2.0**-52), second.mul_(2.0**-52))
    else:
        _box_muller(out, 0, w0.to(torch.float64).add_(0.5).mul_(2.0**-32), w1.to(torch.float64).mul_(2.0**-32))
        _box_muller(out, 2, w2.to(torch.float64).add_(0.5).mul_(2.0**-32), w3.to(torch.float64).mul_(2.0**-32))


def _box_muller(out: Tensor, place: int, radius: Tensor, angle: Tensor) -> None:
    """Two normals from a uniform number within (0, 1) and another."""
    radius = radius.log_().mul_(-2.0).sqrt_()
    angle = angle.mul_(2.0 * math.pi)
    out[..., place] = torch.cos(angle).mul_(radius)
    out[..., place + 1] = angle.sin_().mul_(radius)


def _per_block(dtype: torch.dtype) -> int:
    return 2 if dtype == torch.float64 else 4


def _words(number: int) -> tuple[int, int]:
    return number & MASK, (number >> 32) & MASK
