"""The rows of a problem several times over, as dual numbers: a copy of all of them for each direction.

The values of all copies are the same, and so are the steps they take. Their tangents differ, and so may the tangents of
the arguments and of what functions use besides: each copy has its own of these.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch._functorch.predispatch import lazy_load_decompositions
from torch._functorch.vmap import vmap_increment_nesting
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from torchivp.boundary import caller_casts
from torchivp.dual_numbers import parts
from torchivp.generators import Generators
from torchivp.rows.both_ways import Leaves, same, same_backwards
from torchivp.rows.function import RowByRow, RowFunction
from torchivp.rows.problem import RowProblem
from torchivp.rows.times import RowTimes
from torchivp.torch_func import as_leaf, is_dual, without_graph

Look = Callable[[Tensor, "FunctionOnCopies", Tensor, Tensor], None]
"""Looks at the graph of a value, which has no business there, of a function at these times and states."""


@dataclass(frozen=True)
class Copies:
    """What each copy has for itself.

    Attributes:
        count: how many copies there are.
        args: by place among the leaves of the arguments, tensors [copies, ...].
        used: tensors that the functions use besides, each with what stands for it in the copies, [copies, ...].
        look: told of values that autograd would follow further.
    """

    count: int
    args: dict[int, Tensor]
    used: Sequence[tuple[Tensor, Tensor]]
    look: Look

    def problem(self, problem: RowProblem) -> RowProblem:
        """The copies of a problem whose states, moving times and schedules have been copied already."""
        times = problem.times
        outputs = None if times.outputs is None else self.tiled(times.outputs)
        made: dict[int, CopiedFunction] = {}

        def copied(function: RowFunction | None) -> Any:
            if function is None:
                return None
            return made.setdefault(id(function), CopiedFunction(function, self))

        actions = [
            replace(
                action,
                g=copied(action.g),
                apply=copied(action.apply),
                times=None if action.times is None else self.tiled(action.times),
                moving=self._of_all_rows(action.moving, problem),
                values=self._of_all_rows(action.values, problem),
            )
            for action in problem.actions
        ]
        return replace(
            problem,
            func=copied(problem.func),
            times=RowTimes(self.tiled(times.start), self.tiled(times.end), outputs),
            actions=actions,
            batched=True,
        )

    def _of_all_rows(self, x: Tensor | None, problem: RowProblem) -> Tensor | None:
        """What has an entry for each row, if it has not been copied because it is constant."""
        if x is None or len(x) == problem.rows:
            return x
        return x.repeat(self.count, *[1] * (x.ndim - 1))

    def tiled(self, of_rows: np.ndarray) -> np.ndarray:
        """An array with an entry for each row, copied."""
        return np.concatenate([of_rows] * self.count)


class CopiedFunction:
    """A function of the user's on the copies, in the place of a `RowFunction`.

    Attributes:
        function: the function on the rows of one copy.
        copies: what each copy has for itself.
        mapped: whether it is called for all copies at once, by `torch.func.vmap`.
        tried: whether that has worked once.
        checked: whether its derivatives forwards have been compared with those backwards.
        watched: whether autograd must watch the state for them to be right.
    """

    def __init__(self, function: RowFunction, copies: Copies) -> None:
        self.function = function
        self.copies = copies
        self.mapped, self.tried = copies.count > 1 and not caller_casts(), False  # autocast does not see into a map
        self.checked, self.watched = False, False
        self.jac = function.jac and CopiedFunction(function.jac, copies)

    def on(self, rows: Tensor | None) -> FunctionOnCopies:
        """The function of a choice of the rows, the same in all copies; or of all."""
        count = self.copies.count
        chosen = None if rows is None else rows[: len(rows) // count]
        if rows is not None and chosen is not None:
            every = (
                chosen + torch.arange(count, device=rows.device).unsqueeze(1) * self.function.layout.rows
            ).flatten()
            assert torch.equal(rows, every), "all copies take the same steps"
        return FunctionOnCopies(self, chosen)


class FunctionOnCopies(RowByRow):
    """A function of time [copies * rows, 1] and state [copies * rows, size], all rows of a copy after one another.

    Attributes:
        sparsity: where its Jacobian may have entries.
        projection: what is before dy/dt, in equations whose right-hand side this is; None for nothing.
        jacobian: what the user gave for its Jacobian.
    """

    def __init__(self, owner: CopiedFunction, rows: Tensor | None) -> None:
        super().__init__()
        self._owner = owner
        self._inner = owner.function.on(rows)
        self._leaves, self._spec = pytree.tree_flatten(self._inner.args)
        args = self._args_of(rows) if owner.function.takes_args else {}
        self._places, self._own = list(args), list(args.values())
        self.sparsity, self.projection = self._inner.sparsity, self._inner.projection
        self.jacobian = owner.jac and owner.jac.on(rows)

    def _args_of(self, rows: Tensor | None) -> dict[int, Tensor]:
        """The arguments of the copies, for these rows."""
        function, copies = self._owner.function, self._owner.copies
        if rows is None or not function.row_wise:
            return copies.args
        per_row, dims, count = function.args.per_row, len(function.layout.lead), function.layout.rows
        return {
            i: x.reshape(copies.count, count, *x.shape[1 + dims :])[:, rows] if per_row[i] else x
            for i, x in copies.args.items()
        }

    @property
    def summands(self) -> tuple[FunctionOnCopies, FunctionOnCopies] | None:
        """The explicit and the implicit part, if it is the sum of two functions."""
        parts = self._inner.summands
        if parts is None:
            return None
        made = copy.copy(self), copy.copy(self)
        for part, inner in zip(made, parts, strict=True):
            part._inner = inner
        return made

    @property
    def name(self) -> str:
        """What the user's function is called in messages."""
        return self._owner.function.call.name

    def __call__(self, t: Tensor, y: Tensor, *extra: Tensor) -> Tensor:
        self.calls += 1
        owner = self._owner
        if torch.is_grad_enabled() and (y.requires_grad or t.requires_grad):
            return self.at(t, y, extra)
        if not owner.checked:
            owner.checked, owner.watched = True, self._loses_tangents(t, y, extra)
        y = _watched(y) if owner.watched else y
        value = self.at(t, y, extra)
        if not value.requires_grad:
            return value
        owner.copies.look(value, self, t, y)
        return without_graph(value)

    def _loses_tangents(self, t: Tensor, y: Tensor, extra: Sequence[Tensor]) -> bool:
        """Whether the user's function gives other derivatives forwards where autograd does not watch the state.

        It may look whether it does, and detach the state if not, in order to differentiate by it.

        Raises:
            RuntimeError: the derivatives forwards are not those backwards.
        """
        generators = Generators(y.device)
        before = generators.now()
        plain = self.at(t, y, extra)
        generators.put_back(before)
        used = [x for _, x in self._owner.copies.used]
        leaves = Leaves(_watched(y), *([*map(_watched, given)] for given in (extra, self._own, used)))
        watched = self.at(t, leaves.y, leaves.extra, leaves)
        generators.put_back(before)
        if not same_backwards(watched, t, leaves, self._owner.copies.count):
            raise RuntimeError(
                f"gradient='forward' differentiates {self.name} forwards, and PyTorch finds other derivatives so than "
                "backwards: something in it loses them in forward mode, as a compiled function or a "
                "torch.autograd.Function with a wrong jvp does. Use gradient='checkpointed'"
            )
        return not same(parts(plain)[1], parts(watched)[1])

    def at(self, t: Tensor, y: Tensor, extra: Sequence[Tensor], leaves: Leaves | None = None) -> Tensor:
        """The values of all copies, with the graph that they have where autograd watches.

        They come from one call, or if the user's function cannot do that, one after the other.
        """
        owner = self._owner
        count = owner.copies.count
        own = self._own if leaves is None else leaves.own
        used = [x for _, x in owner.copies.used] if leaves is None else leaves.used
        # A time that all share is no batch, so that a function may look at its value.
        shared = not (is_dual(t) or t.requires_grad)
        generators = Generators(y.device)
        with torch.enable_grad():
            times = t[: len(t) // count] if shared else _by_copy(t, count)
            inputs = (times, *(_by_copy(x, count) for x in (y, *extra)), *own, *used)
            if owner.mapped:
                before = None if owner.tried else generators.now()  # to ask for it takes long
                try:
                    values = _mapped(self._of_one, inputs[:1] if shared else (), inputs[1 if shared else 0 :], count)
                    owner.tried = True
                    return values.flatten(0, 1)
                except Exception:  # of any kind: if the cause is another, it will show itself again
                    owner.mapped = False
                    if before is not None:
                        generators.put_back(before)
            return torch.cat(self._one_by_one(inputs, shared, generators))

    def _one_by_one(self, inputs: Sequence[Tensor], shared: bool, generators: Generators) -> list[Tensor]:
        before, found = generators.now(), []
        for i in range(self._owner.copies.count):
            generators.put_back(before)  # the same is drawn in all
            try:
                found.append(self._of_one(inputs[0] if shared else inputs[0][i], *(x[i] for x in inputs[1:])))
            except (RuntimeError, NotImplementedError) as error:
                _refuse_unless_own(error)
                raise
        return found

    def _of_one(self, t: Tensor, y: Tensor, *others: Tensor) -> Tensor:
        """The values of one copy; the `others` are what there is for each row, the arguments, and what is used."""
        used = self._owner.copies.used
        extra = others[: len(others) - len(self._own) - len(used)]
        args = list(self._leaves)
        for i, own in zip(self._places, others[len(extra) :], strict=False):
            args[i] = own
        instead = _Instead([x for x, _ in used], others[len(others) - len(used) :]) if used else nullcontext()
        with instead:
            return self._inner.with_args(pytree.tree_unflatten(args, self._spec))(t, y, *extra)


def _mapped(function: Callable[..., Tensor], shared: Sequence[Tensor], own: Sequence[Tensor], count: int) -> Tensor:
    """What `torch.func.vmap` does for a function of tensors, in a third of its time; random numbers are the same."""
    lazy_load_decompositions()
    with vmap_increment_nesting(count, "same") as level:
        value = function(*shared, *(_functorch._add_batch_dim(x, 0, level) for x in own))
        return _functorch._remove_batch_dim(value, level, count, 0)


def _watched(x: Tensor) -> Tensor:
    """The same, as a leaf that autograd watches if it can."""
    if not (x.is_floating_point() or x.is_complex()):
        return x
    with torch.enable_grad():
        return as_leaf(x)


def _by_copy(x: Tensor, count: int) -> Tensor:
    return x.reshape(count, len(x) // count, *x.shape[1:])


def _refuse_unless_own(error: Exception) -> None:
    """Say what to do where PyTorch cannot differentiate forwards.

    Raises:
        RuntimeError: that is what went wrong.
    """
    if any(words in str(error) for words in ("forward AD", "forward mode AD", "jvp", "forward-mode")):
        raise RuntimeError(
            f"gradient='forward' differentiates func forwards, and PyTorch cannot: {error} Use "
            "gradient='checkpointed', which differentiates it backwards"
        ) from error


class _Instead(TorchFunctionMode):
    """Puts other tensors in the places of tensors that a function uses.

    Args:
        tensors: the tensors.
        others: what stands for each.
    """

    def __init__(self, tensors: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        super().__init__()
        self._others = {id(x): other for x, other in zip(tensors, others, strict=True)}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return func(*map(self._put, args), **{name: self._put(x) for name, x in (kwargs or {}).items()})

    def _put(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return self._others.get(id(x), x)
        if type(x) in (list, tuple):
            return type(x)(map(self._put, x))
        return x


def refuse_graph(name: str) -> NoReturn:
    """Refuse what was computed elsewhere from something that is differentiated forwards.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        f"{name} uses a tensor that was computed elsewhere from one that a gradient is wanted for: gradient='forward' "
        "cannot move the one with the other. Compute it within func, pass it to func through args=(tensor,), or use "
        "gradient='checkpointed'"
    )
