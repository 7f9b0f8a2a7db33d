"""What every method is: a function that takes one step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.dense import StepInterpolant, WithinSteps
from torchivp.error_norm import ErrorNorm
from torchivp.references import Sources

FlatFunc = Callable[[Tensor, Tensor], Tensor]
"""`func(t, y)` with a 0-d `t` and `y` of shape [1, size]; for rows with `t` of shape [rows, 1] and `y` [rows, size]."""

Check = Callable[[str, Any], Any]
"""Called with the name and the value of an option; returns the value to use, or raises TypeError or ValueError."""


class Work(NamedTuple):
    """What steps have cost besides evaluations of func: numbers, or arrays with an entry for each row.

    Attributes:
        jacobians: matrices of derivatives that were made.
        factorisations: matrices of linear systems that were factorised.
        solves: linear systems that were solved.
        iterations: iterations of Newton's method.
        stiff: tries of a step with the stiff one of two methods between which another one switches.
        switches: how often it has done that.
    """

    jacobians: Any = 0
    factorisations: Any = 0
    solves: Any = 0
    iterations: Any = 0
    stiff: Any = 0
    switches: Any = 0

    def by_row(self, rows: int) -> np.ndarray:
        """The numbers of all rows, [rows, kinds]."""
        counts = np.empty((rows, len(self)), dtype=np.int64)
        for kind, count in enumerate(self):
            counts[:, kind] = count
        return counts


@dataclass(slots=True)
class Step:
    """One step, tried or taken.

    Attributes:
        t0: its start, a float, or a 0-d tensor if a gradient flows through time; of rows a tensor [rows, 1].
        t1: its end; one before that which was asked for, if the method sizes its steps itself.
        y0: the state at its start, [1, size], or [rows, size].
        y1: the state at its end.
        error: the estimate of the error made in this step; None if the method has none.
        carry: what the next step starts from besides `y1`: a pytree of tensors and plain values, or None.
        retry: what the same step starts from if it is tried again with another size.
        stages: the method's own data, from which it makes the interpolant; valid until the next step.
        order: the order of `error`, by a method that varies it; None for that of the class. Of rows an array [rows].
        others: the orders at which such a method could go on instead, each with the error it would have had. Of rows
            arrays [rows], 0 in the rows that cannot.
        hold: whether the next step must be as long as this one, if this one is accepted; of rows an array [rows].
        failure: for each row that has no `y1` to speak of, by its place, why: a clause such as "Newton's iteration did
            not converge"; None if all have one.
        work: what it has cost besides evaluations of func; None for nothing.
        growth: by which factor the next step may be longer at most, whatever the error says, and by which factor it
            shall be shorter after a `failure`: a number, of rows an array.
        told: what the method is to be told when the step is taken again, see `Method.again_at`: a number, of rows an
            array; None for `order`.
    """

    t0: float | Tensor
    t1: float | Tensor
    y0: Tensor
    y1: Tensor
    error: Tensor | None
    carry: Any
    retry: Any
    stages: Any
    order: int | np.ndarray | None = None
    others: Sequence[tuple[int | np.ndarray, Tensor]] = ()
    hold: bool | np.ndarray = False
    failure: Mapping[int, str] | None = None
    work: Work | None = None
    growth: Any = math.inf
    told: int | np.ndarray | None = None

    @property
    def recorded(self) -> int | np.ndarray | None:
        """What a record keeps of it for those who take it again."""
        return self.order if self.told is None else self.told

    def of_one_row(self, t0: float | Tensor, t1: float | Tensor) -> Step:
        """This step, taken as one of rows, as a step of a single row from `t0` to `t1`."""
        assert isinstance(self.order, np.ndarray)
        self.t0, self.t1, self.order, self.hold = t0, t1, int(self.order[0]), bool(np.all(self.hold))
        self.others = [(int(other[0]), error) for other, error in self.others if other[0]]  # pyright: ignore[reportIndexIssue]
        return self


class Memory(ABC):
    """What a carry holds only to save time, with an entry for each row.

    It is no tensor to those who look for what a gradient flows through.
    """

    __slots__ = ()

    @abstractmethod
    def map(self, function: Callable[..., Tensor], *others: Any) -> Any:
        """What `function` makes of the tensors in it, and of those in the same places of `others`."""


def on_arrays(function: Callable[..., Tensor], *arrays: np.ndarray) -> np.ndarray:
    """What a function of tensors makes of arrays."""
    return function(*(torch.from_numpy(x) for x in arrays)).numpy()


def choice(mask: np.ndarray) -> Callable[[Tensor, Tensor], Tensor]:
    """What takes the first tensor in the rows of the mask and the second in the others."""
    chosen = torch.from_numpy(mask)

    def choose(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(chosen.to(one.device).view(-1, *(1,) * (one.ndim - 1)), one, other)

    return choose


def map_rows(function: Callable[..., Tensor], carry: Any, *others: Any) -> Any:
    """What `function` makes of the tensors of a carry of rows, and of those in the same places of other carries.

    None, in one of them, stands for what must be computed anew; so it does in the result.
    """

    def of_leaf(*leaves: Any) -> Any:
        if any(leaf is None for leaf in leaves):
            return None
        return leaves[0].map(function, *leaves[1:]) if isinstance(leaves[0], Memory) else function(*leaves)

    if carry is None or isinstance(carry, Tensor):  # as mostly
        return of_leaf(carry, *others)
    return pytree.tree_map(of_leaf, carry, *others)


class Method(ABC):
    """A method of integration, made for the state that it will step.

    A method knows nothing of step sizes or gradients. `step` is a function of its arguments alone, so that a
    step can be taken again from its start, for a gradient or by a compiled backend; what SciPy's solvers do, which
    no gradient replays, is an exception. Coefficients in the dtype
    and on the device of the state, and work space, are laid out once, when the method is made.

    Attributes:
        order: the order of convergence; the highest one if the order varies.
        error_order: the order of the error estimate (the exponent of the step size in the local error is one
            more), of the first step if it varies; None if there is no estimate.
        varies_order: whether the method offers other orders in `Step.others`.
        sizes_steps: whether the method sizes its steps itself, so that it is given no controller.
        rows_keep_carry: whether what a step of rows hands on cannot be computed anew from its time and state.
        widest_gap: no two neighbouring evaluations in a step lie further apart, as a fraction of the step.
        uses_jacobian: whether it solves equations with the Jacobian of func.
        splits: whether it treats the two functions that a right-hand side is the sum of (`summands_of` the func that it
            is given) in different ways; others evaluate the sum.
        takes_mass: whether it solves equations with a projection before dy/dt (`projection_of` the func that it is
            given), those of index one.
        iterates_anew: whether a step taken again may leave another rest of its equations, within the tolerances, as the
            matrices with which they were solved are not known any more.
        differentiable: whether autograd can follow `step`.
        fixed_in_odeint: whether `odeint` takes fixed steps with it nevertheless, as torchdiffeq does.
        controller_options: how `PIDController` sizes the steps of this method best, where it differs from its defaults.
        options: the options that `with_options` takes, each with its check; the values are class attributes.
        references: its sources: keys of `references.bib`, or BibTeX entries.

    Args:
        y0: the initial state, [rows, size].
        real_dtype: the dtype of the `t` that `func` receives.
        norm: the tolerances, for methods that solve equations in each step.
    """

    order: ClassVar[int]
    error_order: ClassVar[int | None]
    varies_order: ClassVar[bool] = False
    sizes_steps: ClassVar[bool] = False
    rows_keep_carry: ClassVar[bool] = False
    widest_gap: ClassVar[float] = 1.0
    uses_jacobian: ClassVar[bool] = False
    splits: ClassVar[bool] = False
    takes_mass: ClassVar[bool] = False
    iterates_anew: bool = False
    differentiable: ClassVar[bool] = True
    fixed_in_odeint: ClassVar[bool] = False
    controller_options: ClassVar[Mapping[str, float]] = {}
    options: ClassVar[Mapping[str, Check]] = {}
    references: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __init__(self, y0: Tensor, real_dtype: torch.dtype, norm: ErrorNorm): ...

    @abstractmethod
    def step(self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: Any) -> Step:
        """Step from `(t0, y0)` to `t1`."""

    @abstractmethod
    def interpolant(self, func: FlatFunc, step: Step) -> StepInterpolant:
        """The solution within `step`. May evaluate `func`, and may put the result into `step.carry`."""

    @abstractmethod
    def step_rows(self, func: FlatFunc, t0: Tensor, t1: Tensor, y0: Tensor, carry: Any, norm: ErrorNorm) -> Step:
        """Step every row from its own time to its own time: `t0` and `t1` are [rows, 1], `y0` is [rows, size].

        The numbers of a row do not depend on the other rows, to the last bit. `norm` is that of these rows, for methods
        that solve equations.
        """

    @abstractmethod
    def interpolant_rows(self, func: FlatFunc, step: Step) -> WithinSteps:
        """The solution within a step of rows. May evaluate `func`, and may put the result into `step.carry`."""

    def initial_carry(self, f0: Tensor) -> Any:
        """The first step's `carry`, given that `func(t0, y0) = f0` is known already."""
        return None

    def at_order(self, carry: Any, order: int | np.ndarray) -> Any:
        """The `carry` (or `retry`) with which a method of varying order goes on at this order.

        Of rows [rows], 0 in those that go on as they would.
        """
        return carry

    def again_at(self, carry: Any, told: int | np.ndarray) -> Any:
        """The `carry` with which a step is taken again as it was, given what `Step.recorded` said of it."""
        return self.at_order(carry, told)

    def carry_to_keep(self, carry: Any) -> Any:
        """The `carry` without what only saves time, for those who keep many: no more than a few states."""
        return carry

    @classmethod
    def at_steps(cls, fixed: bool, rows: int = 1) -> type[Self]:
        """The same method for `fixed` steps, where none is tried again and nobody asks for its error, or for others.

        `rows` is how many there are at the start: what is decided by it must not change when some are through.
        """
        return cls

    @classmethod
    def cited(cls, stiff: int = 1) -> Sources:
        """What it takes steps with, and the sources of that.

        `stiff` is the number of real elements of the states of which steps were stiff (see `Stats`), 0 for none.
        """
        return {f"method {cls.__name__}": cls.references}

    @classmethod
    def with_options(cls, **options: Any) -> type[Self]:
        """The same method with other values of some of its `options`.

        Raises:
            TypeError, ValueError: there is no such option, or the value is of the wrong type or out of range.
        """
        checked = {}
        for name, value in options.items():
            if name not in cls.options:
                known = ", ".join(cls.options) if cls.options else "none"
                raise TypeError(f"{cls.__name__} has no option {name!r}; its options: {known}")
            checked[name] = cls.options[name](name, value)
        return derive(cls, **checked)


M = TypeVar("M", bound=Method)


def derive(method: type[M], **attributes: Any) -> type[M]:
    """A subclass of the same name with some attributes changed."""
    return type(method)(
        method.__name__, (method,), {"__doc__": method.__doc__, "__module__": method.__module__, **attributes}
    )
