"""What is solved of rows, as plain arrays that can be sent, stored and put together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.solution import BatchSolution, EventLog, OfRows, Outcome, Stats, Status

_COUNTS = [each.name for each in fields(Stats) if each.name not in ("backward", "backend")]
_LOG = "events"
_WHOLE = "value"


@dataclass(frozen=True)
class Values:
    """What was solved of some rows.

    Attributes:
        layout: the structure that it had, as JSON.
        arrays: its tensors by name, each with an entry for each row; the entries of an event log, which are as many as
            there were events, are called "events...".
    """

    layout: str
    arrays: dict[str, NDArray[Any]]

    @property
    def plain(self) -> tuple[str, dict[str, NDArray[Any]]]:
        """What a journal keeps."""
        return self.layout, self.arrays

    @property
    def has_events(self) -> bool:
        """Whether there is a log of events."""
        return json.loads(self.layout)["kind"] == "solution" and f"{_LOG}.t" in self.arrays

    def restore(self) -> Any:
        """What was solved, with its structure; tensors are on the CPU."""
        layout = json.loads(self.layout)
        tensors = {name: torch.tensor(each) for name, each in self.arrays.items() if each.dtype.kind != "U"}
        if layout["kind"] == "tree":
            return _tree(layout["names"], layout["spec"], tensors)
        return _solution(self.arrays, tensors, layout)


def to_values(found: Any, count: int) -> Values:
    """What a function of the user's has returned for so many rows.

    Raises:
        TypeError, ValueError: it is nothing that has an entry for each row.
    """
    if isinstance(found, BatchSolution):
        return _from_solution(found, count)
    names, leaves, spec = _named_leaves(found, _WHOLE)
    if not leaves:
        raise TypeError(f"solve must return a tensor, a BatchSolution, or a structure of tensors, got {found!r}")
    arrays = {name: _array(name, leaf) for name, leaf in zip(names, leaves, strict=True)}
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) != count:
            raise ValueError(
                f"solve must return an entry for each of its {count} rows in the first dimension, got shape "
                f"{array.shape}{'' if name == _WHOLE else f' for {name}'}: sdeint has time first, and so needs "
                ".movedim(1, 0)"
            )
    return Values(json.dumps({"kind": "tree", "names": names, "spec": spec}), arrays)


def joined(parts: Sequence[Values], firsts: Sequence[int]) -> Values:
    """The values of all rows.

    Args:
        parts: those of one block of rows after the other.
        firsts: the number of the first row of each.

    Raises:
        ValueError: they are not of the same structure and shape.
    """
    layout = parts[0].layout
    if any(part.layout != layout or part.arrays.keys() != parts[0].arrays.keys() for part in parts):
        raise ValueError("solve returns other structures for some rows than for others: return the same for all")
    solution = json.loads(layout)["kind"] == "solution"
    arrays = {}
    for name in parts[0].arrays:
        some = [part.arrays[name] for part in parts]
        if solution and name == f"{_LOG}.row":
            some = [each + first for each, first in zip(some, firsts, strict=True)]
        elif solution and (name == "t" or _within(name, "y")):
            some = _padded(some)
        if len({each.shape[1:] for each in some}) > 1 or len({each.dtype.kind for each in some}) > 1:
            raise ValueError(
                f"solve returns other shapes of {name} for some rows than for others, {some[0].shape[1:]} and others: "
                "return the same for all rows"
            )
        arrays[name] = np.concatenate(some)
    return Values(layout, arrays)


def _padded(arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Rows with as many times as the longest has, NaN where there are no more."""
    longest = max(each.shape[1] for each in arrays)
    padded = []
    for each in arrays:
        wider = np.full((len(each), longest, *each.shape[2:]), np.nan, each.dtype)
        wider[:, : each.shape[1]] = each
        padded.append(wider)
    return padded


def _named_leaves(tree: Any, name: str) -> tuple[list[str], list[Any], str]:
    """The leaves of a structure, what they are called, and the structure as JSON."""
    pairs, spec = pytree.tree_flatten_with_path(tree)
    names = [".".join([*([name] if name != _WHOLE or not path else []), *map(_key, path)]) for path, _ in pairs]
    if len(set(names)) < len(names):
        raise TypeError(f"solve must not return two tensors with the same name, and those here are {', '.join(names)}")
    try:
        written = pytree.treespec_dumps(spec)
    except NotImplementedError as error:
        raise TypeError(f"solve must return a structure of tuples, lists and dicts: {error}") from error
    return names, [leaf for _, leaf in pairs], written


def _key(entry: Any) -> str:
    return str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry))))


def _tree(names: Sequence[str], spec: str, tensors: Mapping[str, Tensor]) -> Any:
    return pytree.tree_unflatten([tensors[name] for name in names], pytree.treespec_loads(spec))


def _array(name: str, leaf: Any) -> NDArray[Any]:
    if isinstance(leaf, Tensor):
        try:
            return leaf.detach().cpu().resolve_conj().resolve_neg().numpy().copy()  # solve may use its memory again
        except TypeError as error:
            raise TypeError(f"{name} is of {leaf.dtype}, which NumPy does not have: return {name}.float()") from error
    array = np.array(leaf)
    if array.dtype.kind not in "bifuc":
        raise TypeError(
            f"solve must return tensors, arrays or a BatchSolution, got {type(leaf).__name__} for {name}: return "
            "numbers with an entry for each row"
        )
    return array


def _from_solution(found: BatchSolution, count: int) -> Values:
    if tuple(found.batch_shape) != (count,):
        raise ValueError(
            f"solve must return a BatchSolution of its {count} rows, got one of the shape {tuple(found.batch_shape)}: "
            "solve with batch_dims=1"
        )
    if found.sol:
        raise ValueError("an ensemble keeps no dense output: give t_eval, or call solution.sol(t) in solve")
    arrays: dict[str, NDArray[Any]] = {"t": _array("t", found.t), "t_final": _array("t_final", found.t_final)}
    names, leaves, spec = _named_leaves(found.y, "y")
    arrays |= {name: _array(name, leaf) for name, leaf in zip(names, leaves, strict=True)}
    finals = ["final" + name[1:] for name in names]
    ends = pytree.tree_leaves(found.final)
    arrays |= {name: _array(name, leaf) for name, leaf in zip(finals, ends, strict=True)}
    statuses, stats = list(found.status), list(found.stats)
    arrays["outcome"] = np.array([each.outcome.value for each in statuses], dtype=np.str_)
    arrays["message"] = np.array([each.message for each in statuses], dtype=np.str_)
    arrays["reached"] = np.array([each.t for each in statuses], dtype=np.float64)
    arrays |= {name: np.array([getattr(each, name) for each in stats], dtype=np.int64) for name in _COUNTS}
    arrays["backend"] = np.array([each.backend for each in stats], dtype=np.str_)
    if found.events is not None:
        log = found.events
        arrays |= {f"{_LOG}.{name}": _array(name, getattr(log, name)) for name in ("t", "index", "row")}
        for side in ("y", "y_after"):
            sides = zip(names, pytree.tree_leaves(getattr(log, side)), strict=True)
            arrays |= {f"{_LOG}.{side}{name[1:]}": _array(name, leaf) for name, leaf in sides}
    return Values(json.dumps({"kind": "solution", "names": names, "spec": spec}), arrays)


def _solution(
    arrays: Mapping[str, NDArray[Any]], tensors: Mapping[str, Tensor], layout: Mapping[str, Any]
) -> BatchSolution:
    def tree(start: str) -> Any:
        return _tree([start + name[1:] for name in layout["names"]], layout["spec"], tensors)

    def status(row: int) -> Status:
        outcome, message = Outcome(arrays["outcome"][row].item()), arrays["message"][row].item()
        return Status(outcome, message, arrays["reached"][row].item())

    def stats(row: int) -> Stats:
        counts = {name: arrays[name][row].item() for name in _COUNTS}
        return Stats(**counts, backend=arrays["backend"][row].item())

    log, count = None, len(arrays["t"])
    if f"{_LOG}.t" in arrays:
        t, index, row = (tensors[f"{_LOG}.{name}"] for name in ("t", "index", "row"))
        log = EventLog(t, tree(f"{_LOG}.y"), tree(f"{_LOG}.y_after"), index, row)
    return BatchSolution(
        tensors["t"],
        tree("y"),
        (count,),
        OfRows(count, status),
        OfRows(count, stats),
        tree("final"),
        tensors["t_final"],
        events=log,
    )


def _within(name: str, start: str) -> bool:
    return name == start or name.startswith(f"{start}.")
