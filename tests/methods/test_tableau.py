"""A tableau checks itself."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg

from torchivp import ODE_METHODS
from torchivp.methods.ode.order_conditions import density, residual, rooted_trees
from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau, StagePolynomials, square

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


PAIR = ODE_METHODS["kencarp4"].tableau


def test_the_parts_of_a_pair_have_its_order_and_so_do_their_mixtures():
    for order, name in ((3, "kencarp3"), (4, "kencarp4"), (5, "kencarp5")):
        tableau = ODE_METHODS[name].tableau
        a, b, explicit = tableau.matrix, np.array(tableau.b), square(tableau.a_explicit)
        assert tableau.order == order
        for one, other in ((a, None), (explicit, None), (a, explicit)):
            assert residual(one, b, order, other=other) < 1e-14
            assert residual(one, b, order + 1, other=other) > 1e-3


def test_a_pair_whose_parts_have_its_order_and_whose_mixtures_have_not_is_refused():
    """Another explicit method of order 4, with the nodes and weights of kencarp4."""
    a, b, c = PAIR.matrix, np.array(PAIR.b), np.array(PAIR.c)
    explicit, places = square(PAIR.a_explicit), np.tril_indices(len(c), -1)

    def conditions(x):  # those that are linear in a change of the coefficients, [n, n]
        return np.concatenate([x.sum(1)[1:], [b @ x @ c, b @ (c * (x @ c)), b @ x @ c**2]])

    def spread(values):
        x = np.zeros_like(a)
        x[places] = values
        return x

    unit = np.eye(len(places[0]))
    free = scipy.linalg.null_space(np.stack([conditions(spread(e)) for e in unit], 1))
    change = spread(free @ np.arange(1.0, free.shape[1] + 1))
    # The last condition is quadratic in the size of the change.
    linear, quadratic = b @ (change @ explicit + explicit @ change) @ c, b @ change @ change @ c
    other = explicit - linear / quadratic * change
    assert residual(other, b, 4) < 1e-12 and residual(a, b, 4) < 1e-13
    assert residual(a, b, 3, other=other) < 1e-12 and residual(a, b, 4, other=other) > 1e-4
    with pytest.raises(ValueError, match="b must have order 4"):
        replace(PAIR, a_explicit=tuple(map(tuple, other)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"a_explicit": ((), *PAIR.a_explicit[1:-1], (1 / 2,))}, "rows of a_explicit must sum to the nodes c"),
        ({"a_explicit": PAIR.a}, "a_explicit must be zero on its diagonal and above"),
        ({"a_explicit": ((), *((c,) for c in PAIR.c[1:]))}, "b must have order 4"),
        ({"dense": replace(PAIR.dense, c=(1 / 2,), a=((1 / 2,),))}, "dense.b .* must do with its stages"),
    ],
)
def test_a_wrong_pair_is_refused(change, sentence):
    with pytest.raises(ValueError, match=f"inconsistent Butcher tableau: .*{sentence}"):
        replace(PAIR, **change)


def test_a_pair_is_solved_for_stage_by_stage():
    radau = ODE_METHODS["radauIIA3"].tableau
    with pytest.raises(ValueError, match="a must be lower triangular, with equal numbers on its diagonal"):
        replace(radau, a_explicit=((0, 0), (0, 0)), c=(0, 0), a=((-1, 1), (0, 0)))


def test_first_same_as_last_is_found():
    found = {
        name for name, method in ODE_METHODS.items() if issubclass(method, ExplicitRungeKutta) and method.tableau.fsal
    }
    assert found == {"bosh3", "dopri5", "tsit5", "dopri8"}
