"""The `options` of a solve of an SDE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchivp.boundary import warn
from torchivp.checks import check_whole_number
from torchivp.methods.sde.method import SDEMethod

MAX_STEPS = 10_000_000


@dataclass(frozen=True)
class SDEOptions:
    """What `options` say.

    Attributes:
        method: the arguments of the method.
        landing: whether steps end on the times of the outputs; if not, the states there are interpolated linearly.
        max_steps: the largest number of steps, or of attempts.
    """

    method: dict[str, Any]
    landing: bool
    max_steps: int


def read_sde_options(caller: str, method: type[SDEMethod], options: Any) -> SDEOptions:
    """The options, checked; unknown ones are named in a warning and ignored.

    Raises:
        TypeError: `options` is not a dict, or an option is of the wrong type.
        ValueError: an option makes no sense.
    """
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"options must be a dict such as {{'grad_free': True}}, got {options!r}")
    given = dict(options or {})
    interp = given.pop("interp", None)
    if interp not in (None, "linear"):
        raise ValueError(
            f"options['interp'] must be 'linear', for steps that do not land on ts, or absent, got {interp!r}"
        )
    max_steps = check_whole_number("options['max_num_steps']", given.pop("max_num_steps", MAX_STEPS), 1)
    own = {name: given.pop(name) for name in method.options if name in given}
    given.pop("grad_free", None)  # torchsde's users pass it along whatever the method
    if given:
        warn(f"`{caller}`: Unexpected options {given} are ignored")
    return SDEOptions(own, interp is None, max_steps)


def read_adjoint_options(options: Any) -> int:
    """The largest number of step attempts of an adaptive adjoint; other options are named in a warning and ignored.

    Raises:
        TypeError: `options` is not a dict, or the number is none.
        ValueError: the number is too small.
    """
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"adjoint_options must be a dict such as {{'max_num_steps': 10000}}, got {options!r}")
    given = dict(options or {})
    max_steps = check_whole_number("adjoint_options['max_num_steps']", given.pop("max_num_steps", MAX_STEPS), 1)
    given.pop("grad_free", None)  # torchsde's users pass it along whatever the method
    if given:
        warn(f"`sdeint_adjoint`: Unexpected adjoint_options {given} are ignored")
    return max_steps
