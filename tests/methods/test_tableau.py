"""A tableau checks itself."""

import numpy as np
import pytest

from torchivp import ODE_METHODS
from torchivp.methods.ode.order_conditions import density, residual, rooted_trees
from torchivp.methods.ode.runge_kutta import ButcherTableau, ExplicitRungeKutta, StagePolynomials

RK4 = {"c": (0, 1 / 2, 1 / 2, 1), "a": ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), "b": (1 / 6, 1 / 3, 1 / 3, 1 / 6)}


def test_rooted_trees_are_counted_right():
    # The number of rooted trees, sequence A000081 of the OEIS.
    assert [len(rooted_trees(n)) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]
    assert len({tree for n in range(1, 9) for tree in rooted_trees(n)}) == 200


def test_densities_of_the_trees_of_order_four():
    # Hairer, Norsett and Wanner I, table II.2.1.
    assert sorted(density(tree) for tree in rooted_trees(4)) == [4, 8, 12, 24]


def test_the_classical_method_has_order_four_and_not_five():
    a = np.array([[0, 0, 0, 0], [0.5, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 1, 0]])
    assert residual(a, np.array(RK4["b"]), 4) < 1e-15
    assert residual(a, np.array(RK4["b"]), 5) > 1e-3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"c": (0, 1 / 2, 1 / 3, 1)}, "rows of a must sum to the nodes c"),
        ({"b": (1 / 6, 1 / 3, 1 / 6, 1 / 3)}, "b must have order 4"),
        ({"order": 5}, "b must have order 5"),
        ({"b_embedded": (1 / 4, 1 / 4, 1 / 4, 1 / 4)}, "b_embedded must have order 3"),
        ({"dense": StagePolynomials(2, b=((1, 0), (0, 0), (0, 0), (0, 0)))}, "dense.b must have order 2"),
        ({"dense": StagePolynomials(1, b=((1,), (0,), (0,), (0,)))}, "dense.b must equal b at the end"),
    ],
)
def test_a_wrong_tableau_is_refused(change, sentence):
    with pytest.raises(ValueError, match=f"inconsistent Butcher tableau: .*{sentence}"):
        ButcherTableau(**({"order": 4} | RK4 | change))


def test_first_same_as_last_is_found():
    found = {
        name for name, method in ODE_METHODS.items() if issubclass(method, ExplicitRungeKutta) and method.tableau.fsal
    }
    assert found == {"bosh3", "dopri5", "tsit5", "dopri8"}
