"""What kernels of a solve are made of: what is read, compiled and handed over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchivp.api.arguments import Gradient
from torchivp.api.statement import Statement
from torchivp.boundary import caller_casts
from torchivp.error_norm import check_tolerance
from torchivp.fused.compiler import CompileError, NoCompiler
from torchivp.fused.explicit import ExplicitCoefficients
from torchivp.fused.field import Field, Reading
from torchivp.fused.kernel import Form, Kernel, Watched
from torchivp.fused.nvidia import on_gpu
from torchivp.fused.refusal import CannotFuse
from torchivp.fused.rosenbrock import RosenbrockCoefficients
from torchivp.fused.steps import Coefficients
from torchivp.gradients.backsolve import Backsolve
from torchivp.gradients.direct import Direct
from torchivp.gradients.forward import Forward
from torchivp.gradients.inputs import check_parameters
from torchivp.integrate import check_controller
from torchivp.methods.consistent import slopes_of
from torchivp.methods.method import Method
from torchivp.methods.ode.auto import LAST, Auto
from torchivp.methods.ode.rosenbrock import Rosenbrock
from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta
from torchivp.rows.integration import RowIntegration
from torchivp.rows.problem import RowProblem
from torchivp.state import StateLayout
from torchivp.torch_func import may_be_tracked

_fields: dict[Any, Field] = {}
_coefficients: dict[type[Method], Coefficients] = {}


_LACKING = ("dense_output", "norm", "mass", "jac", "jac_sparsity", "callbacks")
"""What kernels do not take."""


def refuse_what_kernels_lack(stated: Statement, others: dict[str, Any]) -> None:
    """Refuse what has no kernel, whatever the problem is.

    Raises:
        CannotFuse: the method or the gradient is of another kind, or something is asked for, one of the `others` among
            them, that kernels do not take.
    """
    method, gradient = stated.method, stated.gradient
    for name, given in ({name: getattr(stated, name) for name in _LACKING} | others).items():
        if given is not None and given is not False:
            raise CannotFuse(f"kernels do not take {name}")
    if not issubclass(method, ExplicitRungeKutta | Rosenbrock | Auto):
        raise CannotFuse(
            f"there are kernels of explicit Runge-Kutta and of Rosenbrock methods only, and {method.__name__} is "
            "neither: choose method='rodas5p' for stiff problems"
        )
    if isinstance(gradient, Backsolve):
        raise CannotFuse("kernels have the gradient of the steps taken, not gradient='backsolve'")
    if isinstance(gradient, Forward):
        raise CannotFuse("kernels differentiate backwards, not gradient='forward'")
    check_controller(stated.controller, method)
    if may_be_tracked():
        raise CannotFuse("kernels are not followed by torch.func transforms and forward mode")
    if caller_casts():
        raise CannotFuse("kernels compute in the precision of the state, not under torch.autocast")


def field_of(y0: Any, batch_dims: int) -> Field:
    """The way to read functions of such states."""
    if isinstance(y0, Tensor):
        key = (y0.shape, y0.dtype, y0.device, batch_dims)
        if key not in _fields:
            _fields[key] = _checked_field(StateLayout(y0, batch_dims))
        return _fields[key]
    return _checked_field(StateLayout(y0, batch_dims))


def _checked_field(layout: StateLayout) -> Field:
    if layout.device.type != "cpu" and not on_gpu(layout.device):
        raise CannotFuse(f"kernels run on the CPU and on NVIDIA's GPUs, and y0 lies on {layout.device}")
    if layout.dtype.is_complex or any(dtype != layout.dtype for dtype in layout.dtypes):
        kinds = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in layout.dtypes}))
        raise CannotFuse(f"kernels compute in float64 or float32 throughout, and the state is {kinds}")
    if not layout.size:
        raise CannotFuse("the state has no elements")
    return Field(layout)


def coefficients_of(method: type[Method]) -> Coefficients:
    """A method as kernels are told of it; of "auto" its first part, with the watch on stiffness."""
    if method not in _coefficients:
        if issubclass(method, Rosenbrock):
            _coefficients[method] = RosenbrockCoefficients.of(method.tableau)
        elif issubclass(method, Auto):
            _coefficients[method] = replace(ExplicitCoefficients.of(method.parts[0].tableau), last=LAST.tolist())
        else:
            assert issubclass(method, ExplicitRungeKutta)
            _coefficients[method] = ExplicitCoefficients.of(method.tableau)
    return _coefficients[method]


def bounds_of(layout: StateLayout) -> tuple[int, ...]:
    """Where the leaves of a state begin and end that have elements."""
    parts = [part for part in layout.parts() if part.stop > part.start]
    return (*(part.start for part in parts), layout.size)


def checked_kernel(
    reading: Reading,
    method: type[Method],
    adaptive: bool,
    plan: RowIntegration,
    layout: StateLayout,
    apart: bool,
    watched: Sequence[Watched] | None = None,
) -> Kernel | CannotFuse:
    """The kernel, if the function as it was read is the function as it is; else why there is none.

    `apart` says whether the values of func in a row depend on that row alone; `watched` are event functions, None for
    a kernel that takes all steps by itself.
    """
    if not (plan.problem.func.row_wise and apart):
        return CannotFuse(rows_mix("func"))
    form = Form(
        coefficients_of(method), layout.dtype, layout.size, bounds_of(layout), adaptive, reading.kinds, layout.device
    )
    try:
        for x in reading.inputs:
            as_read(x, layout.dtype, layout.device)
        kernel = Kernel(reading.traced, form, watched)
    except CannotFuse as error:
        return error
    except (NoCompiler, CompileError) as error:
        return CannotFuse(str(error))
    if not reads_right(reading, plan.problem, first_slopes(plan)):
        return CannotFuse(misread("func"))
    return kernel


def rows_mix(name: str) -> str:
    """That rows of a function depend on each other, and what to do."""
    return (
        f"rows of {name} depend on each other, or {name} cannot be called with one of them: pass what has an entry for "
        "each row through args; a tensor that all rows share must not begin with the dimensions of the batch: "
        "write args=(w[None],)"
    )


def misread(name: str) -> str:
    """That a function is not what its graph is."""
    return (
        f"{name} gave other values when it was called than its graph does: it draws random numbers, or depends on "
        "what it did before"
    )


def first_slopes(plan: RowIntegration) -> Tensor:
    """What func itself gives at the start, [rows, size]."""
    problem = plan.problem
    with torch.no_grad():
        return slopes_of(problem.func.on(None))(problem.user_time(problem.times.start), problem.y0)


def reads_right(reading: Reading, problem: RowProblem, expected: Tensor) -> bool:
    """Whether the graph gives the values of the function itself, [rows, n], at the starts of the first rows."""
    t, count = problem.user_time(problem.times.start), min(2, problem.rows)
    with torch.no_grad():
        for row in range(count):
            given: dict[Any, Tensor] = {"t": t[row : row + 1], "y": problem.y0[row]}
            inputs = []
            for role, x in zip(reading.roles, reading.inputs, strict=True):
                leaf = reading.leaves[role].reshape(problem.rows, *x.shape[1:]) if isinstance(role, int) else None
                value = given.get(role, x) if leaf is None else leaf[row : row + 1]
                inputs.append(value.detach().reshape(x.shape))
            found = reading.traced.module(*inputs)[0]
            if not torch.allclose(found, expected[row], rtol=1e-4, atol=1e-6, equal_nan=True):
                return False
    return True


def as_read(x: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An input as the kernel reads it. One number may lie on the CPU, as torch lets it, whatever the device."""
    elsewhere = x.device != device and not (x.device.type == "cpu" and x.ndim == 0)
    if elsewhere or x.is_complex() or x.layout is not torch.strided:
        where = "the CPU" if device.type == "cpu" else str(device)
        raise CannotFuse(f"kernels read real tensors on {where}, and func uses one that is {x.dtype} on {x.device}")
    read = x.detach().to(device, dtype).contiguous()
    if read.dtype is x.dtype:
        return read
    if not x.is_floating_point() and not torch.equal(read.to(x.device, x.dtype), x):
        raise CannotFuse(f"kernels read whole numbers as {dtype}, and func uses some that are too large for that")
    return read


def tolerance_of(name: str, given: Any, layout: StateLayout, field: Field) -> Tensor:
    """A tolerance for each element, [rows or 1, size]."""
    if isinstance(given, float) and (name, given) in field.tolerances:
        return field.tolerances[name, given]
    checked = check_tolerance(name, given, layout)
    if not isinstance(checked, Tensor):
        checked = torch.full((1, layout.size), checked, dtype=torch.float64)
    if name == "atol":
        checked = checked.clamp(min=torch.finfo(layout.dtype).tiny)
    checked = checked.to(layout.device, layout.dtype).contiguous()
    if isinstance(given, float):
        field.tolerances[name, given] = checked
    return checked


def named_of(params: Any, gradient: Gradient) -> list[Tensor] | None:
    """The tensors that the caller wants gradients of, besides arguments; None for all, as always of "direct".

    Raises:
        TypeError: `params` is not a sequence of tensors.
    """
    if params is None or isinstance(gradient, Direct):
        return None
    named = list(params) if isinstance(params, Iterable) and not isinstance(params, Tensor) else params
    check_parameters("params", named)
    return [named] if isinstance(named, Tensor) else named


def wanted_of(reading: Reading, given: Sequence[Tensor], params: Sequence[Tensor] | None) -> list[int]:
    """The numbers of the inputs, which are `given`, that a gradient flows to."""
    named = None if params is None else {id(x) for x in (*params, *reading.leaves)}
    return [
        i
        for i, (x, role) in enumerate(zip(given, reading.roles, strict=True))
        if role not in ("t", "y") and x.requires_grad and (named is None or id(x) in named)
    ]
