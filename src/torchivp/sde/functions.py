"""The functions that a user's SDE is made of, found by their names, and called with states of any shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchivp.boundary import UserFunction
from torchivp.checks import check_time_first
from torchivp.sde.base import check_noise_type, check_sde_type
from torchivp.sde.terms import Terms
from torchivp.state import StateLayout
from torchivp.torch_func import of_its_own

ROLES = {
    "drift": "f",
    "diffusion": "g",
    "prior_drift": "h",
    "diffusion_prod": "g_prod",
    "drift_and_diffusion": "f_and_g",
    "drift_and_diffusion_prod": "f_and_g_prod",
}
"""What `names` can rename, and the names of these functions without it."""


@dataclass(frozen=True)
class UserFunctions:
    """The functions of a user's SDE, called as `f(t, y, *args)` with states shaped like `y0`; None for those absent."""

    f: UserFunction | None
    g: UserFunction | None
    h: UserFunction | None
    g_prod: UserFunction | None
    f_and_g: UserFunction | None
    f_and_g_prod: UserFunction | None
    owner: Any

    @staticmethod
    def of(sde: Any, names: Mapping[str, str] | None) -> UserFunctions:
        """The functions of `sde`, some of which may go by other names.

        Raises:
            TypeError: `names` is no dict.
            ValueError: `names` renames what there is not, or there is no drift or no diffusion.
        """
        names = {} if names is None else names
        if not isinstance(names, Mapping):
            raise TypeError(f"names must be a dict such as {{'drift': 'my_f'}}, got {names!r}")
        unknown = [key for key in names if key not in ROLES]
        if unknown:
            raise ValueError(f"names can rename {', '.join(map(repr, ROLES))}, not {', '.join(map(repr, unknown))}")
        for role, name in names.items():
            if not (isinstance(name, str) and callable(getattr(sde, name, None))):
                raise ValueError(f"names={{{role!r}: {name!r}}}, but the SDE has no method {name!r}")
        found = {name: getattr(sde, names.get(role, name), None) for role, name in ROLES.items()}
        for name, function in found.items():
            if callable(function):
                check_time_first(f"{name} of the SDE", function, f"{name}(t, y)")
        wrapped = {name: UserFunction(given, name) if callable(given) else None for name, given in found.items()}
        functions = UserFunctions(**wrapped, owner=sde)
        if functions.f is None and functions.f_and_g is None and functions.f_and_g_prod is None:
            raise ValueError("the SDE has no drift: define f(t, y) or f_and_g(t, y), or name it, names={'drift': ...}")
        given = (functions.g, functions.g_prod, functions.f_and_g, functions.f_and_g_prod)
        if all(function is None for function in given):
            raise ValueError(
                "the SDE has no diffusion: define g(t, y), or g_prod(t, y, v), or name it in names={'diffusion': ...}"
            )
        return functions


class UserTerms(Terms):
    """A user's SDE as terms.

    Args:
        functions: its functions.
        layout: how its states lie in [rows, size].
        args: further arguments of every function, a tuple.
        channels: the number of noises in one row.
        reverse: whether time decreases. Then the drift changes its sign, since steps have positive size.
    """

    def __init__(
        self,
        functions: UserFunctions,
        layout: StateLayout,
        args: Sequence[Any],
        channels: int,
        reverse: bool = False,
    ) -> None:
        self.functions = functions
        self.layout = layout
        self.args = tuple(args)
        self.sde_type = check_sde_type(getattr(functions.owner, "sde_type", None))
        self.noise_type = check_noise_type(getattr(functions.owner, "noise_type", None))
        self.size = layout.size
        self.channels = channels
        self.reverse = reverse
        self.together = functions.f_and_g is not None
        self._plain = is_plain(layout)
        self._dtype = layout.dtype

    def with_args(self, args: Sequence[Any]) -> UserTerms:
        """The same SDE with other arguments."""
        return UserTerms(self.functions, self.layout, args, self.channels, self.reverse)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        functions = self.functions
        if functions.f is not None:
            return self._onward(self._state(functions.f(t, y, self._user, *self.args)))
        if functions.f_and_g is not None:
            return self.f_and_g(t, y)[0]
        raise self._missing("f", "f(t, y)")

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        functions = self.functions
        if functions.g is not None:
            return self._diffusion(functions.g(t, y, self._user, *self.args))
        if functions.f_and_g is not None:
            return self.f_and_g(t, y)[1]
        if functions.g_prod is not None:
            return self._diffusion_from_products(t, y)
        raise self._missing("g", "g(t, y)")

    def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        both = self.functions.f_and_g
        if both is None:
            return self.f(t, y), self.g(t, y)
        f, g = both(t, y, self._user, *self.args)
        return self._onward(self._state(f)), self._diffusion(g)

    def g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        prod = self.functions.g_prod
        if prod is not None:
            return self._state(prod(t, y, self._user, self._noise(v), *self.args))
        if self.functions.g is None and self.functions.f_and_g is None:
            return self.f_and_g_prod(t, y, v)[1]
        return self.prod(self.g(t, y), v)

    def f_and_g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        functions = self.functions
        if functions.f_and_g_prod is not None:
            f, prod = functions.f_and_g_prod(t, y, self._user, self._noise(v), *self.args)
            return self._onward(self._state(f)), self._state(prod)
        if functions.g_prod is None and functions.f_and_g is not None:
            f, g = self.f_and_g(t, y)
            return f, self.prod(g, v)
        return self.f(t, y), self.g_prod(t, y, v)

    def h(self, t: Tensor, y: Tensor) -> Tensor:
        """The prior drift."""
        if self.functions.h is None:
            raise self._missing("h", "the prior drift h(t, y)")
        return self._onward(self._state(self.functions.h(t, y, self._user, *self.args)))

    def check(self, t: Tensor, y: Tensor, told_by: str | None = None) -> None:
        """Call every function once and check what it returns.

        Args:
            t: the time.
            y: the state.
            told_by: the argument that tells the number of noises, "bm" or "noise_size"; None where it is `g`.

        Raises:
            TypeError: it is no tensor, or of a dtype that does not fit.
            ValueError: its shape does not fit, or the function changes the state in place.
        """
        functions, layout, y = self.functions, self.layout, y.clone()  # what is refused shall not have changed y0
        noise = self._noise(y.new_zeros(layout.rows, self.channels))

        def call(name: str, *further: Any) -> Any:
            return getattr(functions, name)(t, y, self._user, *further, *self.args)

        for name in ("f", "h"):
            if getattr(functions, name) is not None:
                layout.check(name, call(name))
        if functions.g is not None:
            self._check_diffusion("g", call("g"), told_by)
        if functions.f_and_g is not None:
            f, g = _pair("f_and_g", call("f_and_g"))
            layout.check("f_and_g", f)
            self._check_diffusion("f_and_g", g, told_by)
        if functions.g_prod is not None:
            layout.check("g_prod", call("g_prod", noise))
        if functions.f_and_g_prod is not None:
            for value in _pair("f_and_g_prod", call("f_and_g_prod", noise)):
                layout.check("f_and_g_prod", value)

    def _check_diffusion(self, name: str, g: Any, told_by: str | None) -> None:
        layout, hint = self.layout, f"; of {self.noise_type} noise, the last dimension numbers the noises"
        leaves = [leaf for leaf in pytree.tree_leaves(g) if isinstance(leaf, Tensor)]
        for leaf, shape in zip(leaves, layout.shapes, strict=False):
            state, found = (*layout.lead, *shape), tuple(leaf.shape)
            if self.diagonal:
                several = len(found) == len(state) + 1 and found[:-1] == state
                hint = "; several noises for one element are noise_type='general'" if several else ""
            elif self.noise_type != "scalar":
                self._check_number(name, state, found, told_by)
            if found != (state if self.diagonal else (*state, self.channels)):
                break
        layout.check(name, g, () if self.diagonal else (self.channels,), hint)

    def _check_number(self, name: str, state: tuple[int, ...], found: tuple[int, ...], told_by: str | None) -> None:
        """Check the number of noises of a diffusion that is not diagonal."""
        if found[:-1] != state or not found:
            expected = f"({', '.join(map(str, state))}, m)" if state else "(m,)"
            diagonal = ": that is the shape of noise_type='diagonal'" if found == state else ""
            raise ValueError(
                f"{name} must return {expected} for {self.noise_type} noise, m the number of noises, got the shape "
                f"{found}{diagonal}"
            )
        if found[-1] != self.channels and told_by is not None:
            size = (*self.layout.lead, found[-1])
            if told_by == "bm":
                raise ValueError(
                    f"bm has {self.channels} noises, and {name} returns {found[-1]}: pass size={size} to it"
                )
            raise ValueError(f"noise_size={self.channels}, and {name} returns {found[-1]} noises: leave noise_size out")

    def _user(self, y: Tensor) -> Any:
        return y if self._plain else self.layout.unflatten(y)

    def _state(self, value: Any) -> Tensor:
        if self._plain:
            return of_its_own(value) if value.dtype is self._dtype else value.to(self._dtype)
        return of_its_own(self.layout.flatten(value))

    def _onward(self, f: Tensor) -> Tensor:
        return -f if self.reverse else f

    def _noise(self, v: Tensor) -> Any:
        """What multiplies the diffusion, as the user's functions take it."""
        if self.diagonal:
            return self._user(v)
        return v if len(self.layout.lead) == 1 else v.reshape(*self.layout.lead, self.channels)

    def _diffusion(self, g: Any) -> Tensor:
        if self._plain or self.diagonal:
            return self._state(g)
        rows, dtype = self.layout.rows, self.layout.dtype
        parts = zip(self.layout.leaves_of(g), self.layout.sizes, strict=True)
        leaves = [of_its_own(leaf).to(dtype).reshape(rows, size, self.channels) for leaf, size in parts]
        return leaves[0] if len(leaves) == 1 else torch.cat(leaves, dim=1)

    def _diffusion_from_products(self, t: Tensor, y: Tensor) -> Tensor:
        """The diffusion of an SDE that gives its products only."""
        if self.diagonal:
            return self.g_prod(t, y, torch.ones_like(y))
        return torch.stack([self.g_prod(t, y, unit) for unit in self.units(y)], dim=2)

    def _missing(self, name: str, what: str) -> RuntimeError:
        given = [key for key in ROLES.values() if getattr(self.functions, key) is not None]
        return RuntimeError(
            f"Method `{name}` has not been provided, but this solve needs it: define {what}, or choose another method; "
            f"the SDE has {', '.join(given)}"
        )


def is_plain(layout: StateLayout) -> bool:
    """Whether the user's states are [rows, size] tensors themselves."""
    return layout.template is not None and len(layout.lead) == 1 and layout.template.ndim == 2


def _pair(name: str, value: Any) -> tuple[Any, Any]:
    if not (isinstance(value, tuple | list) and len(value) == 2):
        raise TypeError(f"{name} must return two tensors, the drift and the diffusion, got {type(value).__name__}")
    return value[0], value[1]
