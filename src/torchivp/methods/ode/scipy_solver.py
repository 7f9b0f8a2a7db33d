"""SciPy's solvers, step by step."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from torchivp.checks import check_positive
from torchivp.error_norm import ErrorNorm, Tolerance
from torchivp.methods.method import FlatFunc, Step
from torchivp.methods.one_row import OneRowMethod
from torchivp.references import Sources
from torchivp.times import time_scalar
from torchivp.torch_func import inside_transform

if TYPE_CHECKING:  # takes a quarter of a second to import, and few programs need it
    from scipy.integrate import DenseOutput, OdeSolver

_STANDSTILLS = 100
"""How many steps in a row may leave time where it is: LSODA can begin with a few, and at a singularity never ends."""

_ONE_RTOL = ("Radau", "BDF")
"""The solvers that take no relative tolerance for each element; they are given the tightest."""

_REAL_ONLY = ("Radau", "LSODA")
"""The solvers that take no complex states."""

_SOURCES = {
    "LSODA": ("Petzold1983",),
    "Radau": ("HairerWanner1996",),
    "BDF": ("ShampineReichelt1997",),
    "RK23": ("BogackiShampine1989",),
    "RK45": ("DormandPrince1980", "Shampine1986"),
    "DOP853": ("HairerNorsettWanner1993",),
}
"""What SciPy's documentation names as the sources of its solvers."""


def _known_solvers() -> list[str]:
    import scipy.integrate

    base = scipy.integrate.OdeSolver
    return [n for n, v in vars(scipy.integrate).items() if isinstance(v, type) and issubclass(v, base) and v != base]


def _check_solver(name: str, value: Any) -> str:
    known = _known_solvers()
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}: SciPy's solvers are {', '.join(sorted(known))}")
    return value


_check_size = partial(check_positive, hint=": leave it out for SciPy's default")


def _check_first_step(name: str, value: Any) -> float | None:
    return None if value is None else _check_size(name, value)


def _check_min_step(name: str, value: Any) -> float:
    # 0, unlike for the others, is the default, and programs written for torchdiffeq pass it.
    return 0.0 if isinstance(value, numbers.Real) and value == 0 else _check_size(name, value)


class ScipySolver(OneRowMethod):
    """SciPy's solvers, which size their steps themselves: LSODA, Radau, BDF, RK23, RK45 or DOP853.

    They compute in double precision on the CPU, whatever the state is, and autograd does not see inside. SciPy's own
    norm measures the error. LSODA and Radau take real states only. Dense output: the solver's own.

    Virtanen et al., "SciPy 1.0: fundamental algorithms for scientific computing in Python", Nature Methods 17 (2020);
    LSODA: Petzold, "Automatic selection of methods for solving stiff and nonstiff systems of ordinary differential
    equations", SIAM J. Sci. Stat. Comput. 4 (1983).

    Attributes:
        order: 0, for unknown: it is that of the solver, and LSODA and BDF vary theirs.
        solver: the name of the solver in `scipy.integrate`.
        first_step: the size of the first step, wherever the solver starts anew; None for the solver's choice.
        max_step: the size of the longest step.
        min_step: the size of the shortest step, for LSODA only.
    """

    references = ("Virtanen2020",)
    order = 0
    error_order = None
    sizes_steps = True
    differentiable = False
    solver: str = "LSODA"
    first_step: float | None = None
    max_step: float = math.inf
    min_step: float = 0.0
    options = {  # noqa: RUF012 (that of the base class)
        "solver": _check_solver,
        "first_step": _check_first_step,
        "max_step": _check_size,
        "min_step": _check_min_step,
    }

    @classmethod
    def cited(cls, stiff: int = 1) -> Sources:
        return {**super().cited(stiff), f"SciPy's {cls.solver}": _SOURCES.get(cls.solver, ())}

    def __init__(self, y0: Tensor, real_dtype: torch.dtype, norm: ErrorNorm):
        import scipy.integrate

        if y0.is_complex() and self.solver in _REAL_ONLY:
            raise ValueError(
                f"SciPy's {self.solver} takes real states only, and this one is complex: choose another solver, "
                "options={'solver': 'RK45'}, or BDF if the problem is stiff"
            )
        if inside_transform():
            raise RuntimeError(
                "SciPy's solvers do not work inside function transforms such as torch.func.vmap: choose another "
                "method, such as method='dopri5'"
            )
        self._solver_class: type[OdeSolver] = getattr(scipy.integrate, self.solver)
        self._real_dtype = real_dtype
        # SciPy takes no tighter tolerance, and would warn of it.
        rtol = np.maximum(_tolerance(norm.rtol), 100 * np.finfo(float).eps)
        self._arguments: dict[str, Any] = {
            "rtol": rtol.min() if self.solver in _ONE_RTOL else rtol,
            "atol": _tolerance(norm.atol),
            "max_step": self.max_step,
        }
        if self.min_step:
            if "min_step" not in inspect.signature(self._solver_class).parameters:
                raise ValueError(
                    f"SciPy's {self.solver} knows no shortest step: drop the option 'min_step', or choose "
                    "options={'solver': 'LSODA'}"
                )
            self._arguments["min_step"] = self.min_step

    def step(self, func: FlatFunc, t0: float | Tensor, t1: float | Tensor, y0: Tensor, carry: Any) -> Step:
        start, bound = float(t0), float(t1)
        if isinstance(carry, _LastStep) and carry.covers(start, bound):
            y1 = ScipyInterpolant(t0, t1, y0, carry.dense()).evaluate([t1])
            return Step(t0, t1, y0, y1, None, None, carry, carry)
        try:
            if isinstance(carry, _ScipyStepper) and carry.goes_on(start, bound, y0):
                stepper = carry
            else:
                stepper = _ScipyStepper(func, self._real_dtype, y0)
                stepper.begin(self._solver_class, start, bound, self._arguments, self.first_step)
            stepper.advance(func)
        except _SolverError as error:
            sentence = f"SciPy's {self.solver} failed: {error}"
            return Step(t0, error.t, y0, y0, None, None, None, None, failure={0: sentence})
        last = _LastStep(stepper, start)
        return Step(t0, t1 if last.end == bound else last.end, y0, stepper.state, None, stepper, last, last)

    def interpolant(self, func: FlatFunc, step: Step) -> ScipyInterpolant:
        return ScipyInterpolant(step.t0, step.t1, step.y0, step.stages and step.stages.dense())


@dataclass(frozen=True, slots=True)
class ScipyInterpolant:
    """The solution within one step, by SciPy.

    Attributes:
        t0: the start of the step.
        t1: its end.
        y0: the state at its start, [1, size].
        dense: SciPy's dense output of the step; None of a row that does not move.
    """

    t0: float | Tensor
    t1: float | Tensor
    y0: Tensor
    dense: DenseOutput | None

    def evaluate(self, times: Sequence[float | Tensor]) -> Tensor:
        """The states at `times`, [len(times), size]."""
        if self.dense is None:
            return self.y0.expand(len(times), -1)
        return _like(self.y0, self.dense(np.array([float(t) for t in times])).T)

    def kept(self) -> ScipyInterpolant:
        """The same, valid after the next step too."""
        return self


class _SolverError(Exception):
    """SciPy's solver cannot go on; `t` is where it evaluated the function last."""

    def __init__(self, message: str, t: float):
        super().__init__(message)
        self.t = t


class _Slope:
    """The function as SciPy calls it. The solver holds it, so it does not hold the solver.

    Attributes:
        func: the right-hand side.
        last_t: where it was evaluated last.
        bad_t: where it was not finite; None for nowhere.
        raised: whether it raised an error.
    """

    def __init__(self, func: FlatFunc, real_dtype: torch.dtype, like: Tensor):
        self.func = func
        self._real_dtype = real_dtype
        self._like = like
        self.last_t = 0.0
        self.bad_t: float | None = None
        self.raised = False

    def __call__(self, t: float, y: np.ndarray) -> np.ndarray:
        if not math.isfinite(t):  # an undefined step size stays undefined: some solvers would try it for ever
            raise self.error("its step size is not finite")
        self.last_t = float(t)
        try:
            with torch.no_grad():
                # Arrays are copied on both ways: either side may use its memory again.
                slope = self.func(
                    time_scalar(self.last_t, self._real_dtype, self._like.device), _like(self._like, y[None])
                )
                array = _as_numpy(slope)[0]
        except Exception:
            self.raised = True
            raise
        if not np.isfinite(array).all():
            self.bad_t = self.last_t
        return array

    def error(self, message: str, t: float | None = None) -> _SolverError:
        """That the solver cannot go on, for the reason `message`."""
        where = (
            "the solution may be singular there, or func discontinuous"
            if self.bad_t is None
            else f"func is not finite at t = {self.bad_t:.9g}"
        )
        return _SolverError(f"{message.rstrip('.')} ({where})", self.last_t if t is None else t)


class _ScipyStepper:
    """A solver of SciPy's under way: what a step hands on to the next.

    Attributes:
        state: the state that it has reached, [1, size].
        solver: the solver.
    """

    solver: OdeSolver

    def __init__(self, func: FlatFunc, real_dtype: torch.dtype, y0: Tensor):
        self.state = y0
        self._slope = _Slope(func, real_dtype, y0)

    def begin(
        self,
        solver: type[OdeSolver],
        start: float,
        bound: float,
        arguments: dict[str, Any],
        first_step: float | None,
    ) -> None:
        """Make the solver, which evaluates the function at the start.

        Raises:
            _SolverError: the solver cannot begin.
        """
        y0, slope = _as_numpy(self.state)[0], self._slope
        if not np.isfinite(y0).all():
            raise _SolverError("the initial state is not finite", bound)
        if first_step is not None:  # SciPy refuses one that is longer than the span
            arguments = arguments | {"first_step": min(first_step, abs(bound - start))}
        slope.last_t = start
        try:
            self.solver = solver(slope, start, y0, bound, **arguments)
        except (ValueError, np.linalg.LinAlgError) as error:
            if slope.bad_t is None or slope.raised:
                raise
            raise slope.error(str(error), bound) from error

    def goes_on(self, start: float, bound: float, y0: Tensor) -> bool:
        """Whether the step from `start` is the next one of the solver."""
        solver = self.solver
        return solver.t == start and solver.t_bound == bound and (y0 is self.state or torch.equal(y0, self.state))

    def advance(self, func: FlatFunc) -> None:
        """Take the next step.

        Raises:
            _SolverError: the solver fails.
        """
        solver, slope = self.solver, self._slope
        slope.func = func
        before = solver.t
        for _ in range(_STANDSTILLS):
            message = self._step()
            if solver.status == "failed":
                raise slope.error(_reason(solver, message))
            if not np.isfinite(solver.y).all():
                raise slope.error("the state is not finite after a step")
            if solver.t != before:
                break
        else:
            raise slope.error("its steps are too short to move time")
        slope.bad_t = None
        self.state = _like(self.state, solver.y[None])

    def dense_output(self) -> DenseOutput:
        """The solution within the last step. DOP853 evaluates the function for it."""
        return self.solver.dense_output()

    def _step(self) -> str | None:
        """SciPy's step; it raises errors where, say, a matrix is singular or not finite."""
        try:
            return self.solver.step()
        except (ValueError, np.linalg.LinAlgError) as error:
            if self._slope.raised:
                raise
            raise self._slope.error(str(error)) from error

    def __del__(self) -> None:
        """Free the memory of the solver: it is part of a cycle, and the LSODA of SciPy 1.17 never frees its arrays."""
        solver = getattr(self, "solver", None)
        if solver is None:
            return
        integrator = _integrator(solver)
        for array in (getattr(integrator, "rwork", None), getattr(integrator, "iwork", None)):
            if isinstance(array, np.ndarray):
                array.resize(0, refcheck=False)
        vars(solver).clear()


class _LastStep:
    """The step that a solver has just taken, from which any shorter one can be had."""

    def __init__(self, stepper: _ScipyStepper, start: float):
        self.start = start
        self.end = float(stepper.solver.t)
        self._stepper = stepper
        self._dense: DenseOutput | None = None

    def covers(self, start: float, end: float) -> bool:
        """Whether a step from `start` to `end` is part of this one."""
        return start == self.start and min(start, self.end) <= end <= max(start, self.end)

    def dense(self) -> DenseOutput:
        """The solution within the step; to be asked for before the solver takes the next."""
        if self._dense is None:
            assert self._stepper.solver.t == self.end, "the solver has gone on"
            self._dense = self._stepper.dense_output()
        return self._dense


def _integrator(solver: OdeSolver) -> Any:
    """What LSODA wraps; None of another solver."""
    return getattr(getattr(solver, "_lsoda_solver", None), "_integrator", None)


def _reason(solver: OdeSolver, message: str | None) -> str:
    """Why the solver failed; LSODA's own reason is more telling than what SciPy says of it."""
    integrator = _integrator(solver)
    messages = getattr(integrator, "messages", {})
    return messages.get(getattr(integrator, "istate", None), message or "for no reason given")


def _as_numpy(x: Tensor) -> np.ndarray:
    """A copy, in double precision, on the CPU."""
    return np.array(x.numpy(force=True), dtype=np.complex128 if x.is_complex() else np.float64)


def _like(y: Tensor, array: np.ndarray) -> Tensor:
    """A copy of the array as a tensor of the kind of `y`."""
    return torch.tensor(array, dtype=y.dtype, device=y.device)


def _tolerance(tolerance: Tolerance) -> np.ndarray:
    return _as_numpy(tolerance)[0] if isinstance(tolerance, Tensor) else np.array(tolerance)
