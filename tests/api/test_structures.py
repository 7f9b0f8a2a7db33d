"""States that are structures: what func returns is matched with the state by what is meant."""

import math
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch

from torchivp import SDEIto, odeint, sdeint, solve_ivp

ONE, ZERO = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)


class Oscillator(NamedTuple):
    x: torch.Tensor
    v: torch.Tensor


STRUCTURES = {
    "a named tuple for a named tuple": (Oscillator(ONE, ZERO), lambda t, y: Oscillator(y.v, -y.x)),
    "a tuple for a named tuple": (Oscillator(ONE, ZERO), lambda t, y: (y.v, -y.x)),
    "a list for a tuple": ((ONE, ZERO), lambda t, y: [y[1], -y[0]]),
    "a tensor for a tuple": ((ONE, ZERO), lambda t, y: torch.stack([y[1], -y[0]])),
    "a dict in another order": ({"x": ONE, "v": ZERO}, lambda t, y: {"v": -y["x"], "x": y["v"]}),
    "an ordered dict for a dict": ({"x": ONE, "v": ZERO}, lambda t, y: OrderedDict(v=-y["x"], x=y["v"])),
    "a dict for an ordered dict": (OrderedDict(x=ONE, v=ZERO), lambda t, y: {"v": -y["x"], "x": y["v"]}),
    "nested": ({"a": (ONE, [ZERO])}, lambda t, y: {"a": [y["a"][1][0], (-y["a"][0],)]}),
}


def leaves(y):
    return torch.utils._pytree.tree_leaves(y)


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_that_mean_the_same_are_matched(name):
    y0, func = STRUCTURES[name]
    for y in (
        solve_ivp(func, (0.0, 1.0), y0, t_eval=[1.0]).y,
        odeint(func, y0, [0.0, 1.0]),
        solve_ivp(func, (0.0, 1.0), y0, t_eval=[1.0], events=lambda t, y: leaves(y)[0][0] - 0.9).y,
    ):
        assert type(y) is type(y0)
        x, v = leaves(y)
        assert (x[-1] - math.cos(1.0)).abs().max() < 1e-5 and (v[-1] + math.sin(1.0)).abs().max() < 1e-5


# Not a tensor for a tuple: behind batch dimensions there is no saying which dimension numbers the entries.
@pytest.mark.parametrize("name", [name for name in STRUCTURES if name != "a tensor for a tuple"])
def test_structures_of_rows_are_matched(name):
    y0, func = STRUCTURES[name]
    x, v = leaves(solve_ivp(func, (0.0, 1.0), y0, t_eval=[1.0], batch_dims=1).y)
    assert (x[:, -1] - math.cos(1.0)).abs().max() < 1e-5 and (v[:, -1] + math.sin(1.0)).abs().max() < 1e-5


def test_the_entries_of_an_sde_are_matched_by_their_keys():
    class Decay(SDEIto):
        def f(self, t, y):
            return {"b": -2.0 * y["b"], "a": -y["a"]}

        def g(self, t, y):
            return {"b": torch.zeros_like(y["b"]), "a": torch.zeros_like(y["a"])}

    y = sdeint(Decay("diagonal"), {"a": ONE[:, None], "b": ONE[:, None]}, torch.tensor([0.0, 1.0]), dt=1e-3)
    assert (y["a"][-1] - math.exp(-1.0)).abs().max() < 1e-3 and (y["b"][-1] - math.exp(-2.0)).abs().max() < 1e-3


def test_a_structure_that_does_not_fit_is_described_on_both_sides():
    for wrong in (lambda t, y: {"x": y["x"]}, lambda t, y: (y["x"], y["v"]), lambda t, y: {"x": y["v"], "w": y["x"]}):
        with pytest.raises(TypeError, match="must return the same structure as y0") as caught:
            solve_ivp(wrong, (0.0, 1.0), {"x": ONE, "v": ZERO})
        theirs, ours = str(caught.value).split("y0 is ")[1].split(", func returned ")
        assert theirs != ours


def test_structures_of_ones_own_that_differ_do_not_read_the_same():
    class Pair:
        def __init__(self, x, unit):
            self.x, self.unit = x, unit

    torch.utils._pytree.register_pytree_node(Pair, lambda p: ([p.x], p.unit), lambda c, unit: Pair(*c, unit))
    with pytest.raises(TypeError, match="must return the same structure as y0") as caught:
        solve_ivp(lambda t, y: Pair(-y.x, "km"), (0.0, 1.0), Pair(ONE, "m"))
    theirs, ours = str(caught.value).split("y0 is ")[1].split(", func returned ")
    assert theirs != ours and "Pair" in ours
