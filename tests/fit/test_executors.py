"""Fits on the workers of executors: the same bits as in one process."""

import numpy as np
import pytest

from compilers import needs_compiler
from torchivp import fit
from torchivp.ensembles.executors import portions, processes
from torchivp.models import FunctionModel

T = np.linspace(0, 2, 6)
DATA = {"time": T, "x": 2 * np.exp(-0.5 * T) + 0.02 * np.random.default_rng(0).normal(size=6)}
OPTIONS = {"rtol": 1e-6, "bounds": {"rate": (0.1, 5.0)}}


def decay():
    return FunctionModel(lambda t, y, p: {"x": -p.rate * y.x}, states={"x": 2.0}, parameters={"rate": 1.0})


def run(**options):
    return fit(decay(), DATA, **{"backend": "eager", "starts": 3, **OPTIONS, **options})


@pytest.fixture(scope="module")
def pool():
    with processes(2) as executor:
        yield executor


@pytest.fixture(scope="module")
def alone():
    return run()


def same(one, other):
    attempts = zip(one.attempts, other.attempts, strict=True)
    return (
        one.theta.tobytes() == other.theta.tobytes()
        and (one.nll, one.iterations) == (other.nll, other.iterations)
        and all(a.theta.tobytes() == b.theta.tobytes() and a.nll == b.nll for a, b in attempts)
    )


def test_many_starts_lead_to_the_same_bits(alone, pool):
    told = []
    sent = run(executor=pool, progress=lambda stage, iteration, nll: told.append(stage))
    assert same(sent, alone) and sent.call == alone.call
    assert [f"start {k} of 3" for k in (1, 2, 3)] == [stage for stage in told if stage.startswith("start")]
    np.testing.assert_allclose(alone["rate"].value, 0.5, atol=0.05)


@needs_compiler
@pytest.mark.slow
def test_by_a_kernel_too(pool):
    here, there = (run(backend="fused", executor=executor) for executor in (None, pool))
    assert "kernel" in there.solver and same(here, there)


def test_the_bootstrap_has_the_same_bits(alone, pool):
    here, there = (alone.bootstrap(4, seed=3, executor=executor) for executor in (None, pool))
    assert here.estimates.tobytes() == there.estimates.tobytes() and there.failures == {}


@pytest.mark.slow
def test_profiles_have_the_same_bits(alone, pool):
    here, there = (alone.profiles(executor=executor) for executor in (None, pool))
    assert list(here) == list(there) == ["rate", "x(0)"]
    for name, one in here.items():
        assert one.nll.tobytes() == there[name].nll.tobytes() and one.sentence == there[name].sentence


class Killed(Exception):
    pass


def test_a_fit_that_was_killed_does_not_search_again(alone, pool, tmp_path):
    def die(stage, iteration, nll):
        if stage == "start 2 of 3":
            raise Killed

    path = tmp_path / "fit.journal"
    with pytest.raises(Killed):
        run(executor=pool, checkpoint=path, progress=die)
    told = []
    resumed = run(executor=pool, checkpoint=path, progress=lambda stage, iteration, nll: told.append(stage))
    searched = [stage for stage in told if stage.startswith("start")]
    assert same(resumed, alone) and len(searched) < 3
    assert same(run(executor=None, checkpoint=path), alone), "the journal is one of solves in this process too"


def test_an_executor_without_starts_is_refused():
    with pytest.raises(ValueError, match=r"executor= searches from many starts: give starts=100, or give it to result"):
        run(executor=2, starts=None)
    with pytest.raises(TypeError, match=r"executor must be a concurrent.futures.Executor, .* executor=4"):
        run(executor="processes")


def test_what_cannot_be_is_refused_before_anything_is_sent(alone, pool):
    with pytest.raises(ValueError, match="there is no profile of 'pitch'"):
        alone.profiles(["pitch"], executor=pool)
    with pytest.raises(ValueError, match="draws residuals of normal and lognormal noise"):
        run(noise="student_t", starts=None).bootstrap(2, kind="residual", executor=pool)


def test_portions_are_even():
    assert portions(5, 2) == [slice(0, 2), slice(2, 5)]
    assert portions(2, 4) == [slice(0, 1), slice(1, 2)] and portions(0, 4) == []
    assert len(portions(100, lambda: None)) == 8 and len(portions(100, 2, each=4)) == 8
