"""Ensembles: the same numbers whoever solves them, in whatever portions, dead workers and interruptions included."""

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch

import ensemble_problems as problems
from torchivp import ensemble, sdeint, solve_ivp
from torchivp.ensembles import WorkersDied
from torchivp.ensembles.executors import processes
from torchivp.ensembles.sending import Sent

RATES = torch.linspace(0.5, 2.0, 11, dtype=torch.float64)[:, None]


@pytest.fixture(scope="module")
def pool():
    """Two processes for all tests of this module, since each takes seconds to import torch."""
    with processes(2) as executor:
        yield executor


def bits(found):
    return found.numpy().tobytes()


@pytest.mark.parametrize("solve", [problems.network, problems.paths])
def test_the_bits_depend_on_neither_executor_nor_chunk(pool, solve):
    alone = ensemble(solve, 23, block=5, seed=3)
    assert bits(ensemble(solve, 23, block=5, seed=3, chunk=23)) == bits(alone)
    assert bits(ensemble(solve, 23, block=5, seed=3, executor=pool)) == bits(alone)
    assert bits(ensemble(solve, 23, block=5, seed=3, executor=pool, chunk=7)) == bits(alone)
    assert bits(ensemble(solve, 23, block=5, seed=4)) != bits(alone)


def test_numbers_from_global_generators_are_the_same_too_and_these_are_put_back(pool):
    before = torch.get_rng_state()
    alone, sent = (ensemble(problems.drawn, 9, block=4, executor=each) for each in (None, pool))
    assert bits(alone["row"]) == bits(sent["row"]) and bits(alone["others"]) == bits(sent["others"])
    assert len(alone["others"].unique()) == 36, "blocks draw other numbers"
    assert torch.equal(torch.get_rng_state(), before)


def test_the_random_numbers_of_a_row_belong_to_it():
    found = ensemble(problems.drawn, 6, block=4, seed=5)["row"]
    spawned = [np.random.default_rng(each).random() for each in np.random.SeedSequence(5).spawn(6)]
    assert found.tolist() == spawned
    assert ensemble(problems.drawn, 9, block=2, seed=5)["row"][:6].tolist() == spawned

    def twice(rows):
        return torch.stack([rows.draw(lambda rng: rng.random()) for _ in range(2)], 1)

    two = ensemble(twice, 6, block=4, seed=5)
    assert two[:, 0].tolist() == spawned and not (two[:, 0] == two[:, 1]).any(), "the second draw goes on"


def test_paths_are_those_of_one_solve():
    y0, t = torch.ones(12, 1, dtype=torch.float64), torch.tensor(problems.T, dtype=torch.float64)
    whole = sdeint(problems.Geometric(), y0, t, method="euler", dt=0.1, rng="counter", seed=7)
    assert bits(ensemble(problems.paths, 12, block=5, seed=7)) == bits(whole.movedim(1, 0).contiguous())


def test_a_batch_solution_is_that_of_all_rows(pool):
    found = ensemble(problems.decay, RATES, executor=pool, block=4)
    t = torch.tensor(problems.T, dtype=torch.float64)
    torch.testing.assert_close(found.y[..., 0], torch.exp(-RATES * t), rtol=1e-5, atol=0)
    whole = problems.decay(type("All", (), {"inputs": RATES}))
    assert bits(found.y) == bits(whole.y) and torch.equal(found.t, whole.t) and found.batch_shape == (11,)
    assert bits(found.final) == bits(whole.final) and bits(found.t_final) == bits(whole.t_final)
    assert list(found.status) == list(whole.status) and list(found.stats) == list(whole.stats)
    arrays = ensemble(problems.decay, RATES.numpy(), block=4)
    assert bits(arrays.y) == bits(whole.y)


def test_events_keep_their_rows():
    heights = torch.linspace(0.1, 3.0, 9, dtype=torch.float64)
    found = ensemble(problems.falling, heights, block=4)
    whole = problems.falling(type("All", (), {"inputs": heights}))
    assert bits(found.events.t) == bits(whole.events.t) and torch.equal(found.events.row, whole.events.row)
    assert torch.equal(found.events.y_after, whole.events.y_after)
    ended = found.events.row
    torch.testing.assert_close(found.events.t, torch.sqrt(2 * heights[ended]), rtol=1e-5, atol=0)


def test_steps_of_their_own_are_put_side_by_side():
    def solve(rows):
        return solve_ivp(
            lambda t, y: {"a": -rows.inputs * y["a"]}, (0.0, 1.0), {"a": torch.ones_like(rows.inputs)}, batch_dims=1
        )

    rates = torch.tensor([[0.1], [30.0]], dtype=torch.float64)
    found = ensemble(solve, rates, block=1)
    few, many = (int((~row.isnan()).sum()) for row in found.t)
    assert few < many == found.t.shape[1] and found.y["a"].shape == (2, many, 1)
    assert found.y["a"][0, few:].isnan().all() and found.y["a"][0, :few].isfinite().all()


def test_structures_of_results():
    def solve(rows):
        return {"rest": (rows.index, rows.inputs["x"].numpy()), "whole": 2 * rows.inputs["k"]}

    inputs = {"x": torch.arange(5.0), "k": np.arange(10).reshape(5, 2)}
    found = ensemble(solve, inputs, block=2)
    assert torch.equal(found["rest"][0], torch.arange(5)) and torch.equal(found["rest"][1], inputs["x"])
    assert found["whole"].tolist() == (2 * inputs["k"]).tolist()


def test_a_worker_that_dies_costs_its_tasks_once(tmp_path):
    dying = partial(problems.dying, folder=str(tmp_path))
    (tmp_path / "die-6").write_text("1")
    made = []

    def make():
        made.append(processes(2))
        return made[-1]

    found = ensemble(dying, 40, block=2, executor=make)
    assert len(made) == 2
    begun = [int(line) for line in (tmp_path / "begun").read_text().split()]
    assert set(begun) == set(range(0, 40, 2)) and begun.count(6) == 2
    assert len(begun) <= 20 + 4, "the tasks that two workers had at the time"
    assert bits(found) == bits(ensemble(dying, 40, block=2))


def test_a_task_of_which_workers_die_again_and_again(tmp_path):
    dying = partial(problems.dying, folder=str(tmp_path))
    (tmp_path / "die-6").write_text("9")
    words = r"3 workers died while they had rows \d+ to \d+ to solve, or another .*Give fewer rows at a time or fewer"
    with pytest.raises(WorkersDied, match=words):
        ensemble(dying, 10, block=2, executor=lambda: processes(1))
    words = r"a worker died and has broken the executor .* give a function that makes one, .* or executor=4"
    with processes(1) as executor, pytest.raises(WorkersDied, match=words):
        ensemble(dying, 10, block=2, executor=executor)


def test_what_solve_raises_is_raised_with_its_rows(pool):
    for executor in (None, pool):
        with pytest.raises(ZeroDivisionError, match="of this row") as caught:
            ensemble(problems.failing, 12, block=3, executor=executor)
        assert "in rows 3 to 5 of the ensemble" in caught.value.__notes__
    assert "in failing" in caught.value.__notes__[-1], "the traceback of the worker"


def test_workers_compute_like_this_process(pool):
    torch.set_default_dtype(torch.float64)
    for executor in (None, pool):
        found = ensemble(problems.surroundings, 2, threads=2, executor=executor)
        assert found.tolist() == [[2.0, 8.0]] * 2
    assert torch.get_num_threads() == 1


def test_threads_of_this_process_will_do():
    with ThreadPoolExecutor(2) as threads:
        found = ensemble(problems.paths, 12, block=5, seed=7, executor=threads)
    assert bits(found) == bits(ensemble(problems.paths, 12, block=5, seed=7))


class Killed(Exception):
    pass


class Told:
    """What was solved, outside of the functions that solve, which are told apart by all that they hold."""

    solved: ClassVar = []


@pytest.mark.parametrize("kind", ["checkpoint", "store"])
def test_an_ensemble_that_was_interrupted_goes_on(tmp_path, kind):
    path, solved = tmp_path / "ensemble", Told.solved
    solved.clear()

    def solve(rows):
        Told.solved.append(rows.first)
        return {"x": rows.draw(lambda rng: rng.normal(size=3)), "i": rows.index}

    def die(done, n):
        if done == 6:
            raise Killed

    def run(**options):
        found = ensemble(solve, 11, block=2, **{kind: path}, **options)
        return found.load() if kind == "store" else found

    with pytest.raises(Killed):
        run(progress=die, chunk=2)
    assert solved == [0, 2, 4]
    if kind == "checkpoint":
        torn = path.read_bytes()
        path.write_bytes(torn[:-5])  # the last entry was being written
    told = []
    found = run(chunk=4, progress=lambda done, n: told.append((done, n)))
    assert solved == ([0, 2, 4, 4, 6, 8, 10] if kind == "checkpoint" else [0, 2, 4, 6, 8, 10])
    assert told == [(2, 11), (4, 11), (6, 11), (8, 11), (10, 11), (11, 11)]
    whole = ensemble(solve, 11, block=2)
    assert bits(found["x"]) == bits(whole["x"]) and torch.equal(found["i"], torch.arange(11))
    solved.clear()
    total = ensemble(solve, 11, block=2, **{kind: path}, reduce=lambda total, found: (total or 0) + found["x"].sum())
    assert not solved and abs(total - whole["x"].sum()) < 1e-12
    for other in ({"seed": 1}, {"block": 3}):
        with pytest.raises(ValueError, match=f"is the (journal|store) of another ensemble .*{kind}= another name"):
            ensemble(solve, 11, **{"block": 2, kind: path, **other})
    with pytest.raises(ValueError, match="of another ensemble"):
        ensemble(lambda rows: 2 * rows.index, 11, block=2, **{kind: path})


SCALE = 1.0


def scaled(rows):
    return SCALE * rows.index


def times(rows, factor):
    return factor * rows.index


def test_a_constant_of_the_module_is_part_of_the_function(tmp_path, monkeypatch):
    ensemble(scaled, 3, checkpoint=tmp_path / "a")
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    with pytest.raises(ValueError, match="of another ensemble"):
        ensemble(scaled, 3, checkpoint=tmp_path / "a")
    ensemble(partial(times, factor=2), 3, checkpoint=tmp_path / "b")
    with pytest.raises(ValueError, match="of another ensemble"):
        ensemble(partial(times, factor=3), 3, checkpoint=tmp_path / "b")


def test_reduction_is_in_the_order_of_the_rows(pool):
    order = ensemble(problems.failing, 3, block=3, executor=pool, reduce=lambda total, found: [*(total or []), found])
    assert torch.equal(order[0], torch.arange(3))
    firsts = ensemble(problems.drawn, 20, block=2, executor=pool, reduce=lambda a, b: [*(a or []), b["row"][0].item()])
    assert firsts == ensemble(problems.drawn, 20, block=2)["row"][::2].tolist()


def test_a_store_is_a_table(tmp_path):
    pandas = pytest.importorskip("pandas")
    polars = pytest.importorskip("polars")
    stored = ensemble(problems.decay, RATES, block=2, chunk=4, store=tmp_path / "decay")
    assert len(stored) == stored.n == 11 and len(list(stored)) == 6
    found, whole = stored.load(), ensemble(problems.decay, RATES, block=2)
    assert bits(found.y) == bits(whole.y) and list(found.status) == list(whole.status)
    table = pandas.read_parquet(tmp_path / "decay")
    assert table["row"].tolist() == list(range(11)) and set(table["outcome"]) == {"success"}
    last = np.array([np.stack(each)[-1, 0] for each in table["y"]])
    np.testing.assert_allclose(last, np.exp(-RATES[:, 0].numpy()), rtol=1e-5)
    assert polars.read_parquet(tmp_path / "decay/*.parquet")["y"].to_numpy().shape == (11, 3, 1)


def test_what_a_store_cannot_hold_is_refused(tmp_path):
    heights = torch.linspace(0.1, 3.0, 9, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"no log of events: return a dict .* or use checkpoint="):
        ensemble(problems.falling, heights, store=tmp_path / "a")
    with pytest.raises(ValueError, match=r"Parquet has no complex numbers: return torch.view_as_real\(value\)"):
        ensemble(lambda rows: torch.ones(len(rows), dtype=torch.complex64), 3, store=tmp_path / "b")
    with pytest.raises(ValueError, match="a store has a column 'row'"):
        ensemble(lambda rows: {"row": rows.index}, 3, store=tmp_path / "c")
    with pytest.raises(ValueError, match="results of the same shape for all rows"):
        ensemble(lambda rows: torch.ones(len(rows), 1 + rows.first), 4, block=2, store=tmp_path / "d")
    with pytest.raises(ValueError, match="holds 2 of 4 rows, since the ensemble was interrupted"):
        from torchivp.ensembles import StoredEnsemble

        StoredEnsemble(tmp_path / "d").load()
    (tmp_path / "e").mkdir()
    pytest.importorskip("pandas").DataFrame({"a": [1]}).to_parquet(tmp_path / "e" / "other.parquet")
    with pytest.raises(ValueError, match=r"holds other.parquet, which is no part of an ensemble"):
        ensemble(lambda rows: rows.index, 3, store=tmp_path / "e")


def test_functions_that_cannot_be_sent_are_refused(monkeypatch):
    from torchivp.ensembles import sending

    monkeypatch.setattr(sending.importlib.util, "find_spec", lambda name: None)
    words = "solve cannot be sent to other processes: .* Define it at the top of a module, or install cloudpickle"
    with pytest.raises(ValueError, match=words):
        Sent(lambda rows: rows.index, "solve").__getstate__()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((3, 4), {}, TypeError, "solve must be a function of rows, got 3"),
        ((problems.paths, 0), {}, ValueError, "inputs must be a whole number of at least 1, got 0, of rows, or"),
        ((problems.paths, "many"), {}, TypeError, "inputs must be a number of rows, or a tensor, .* got 'many'"),
        ((problems.paths, [torch.ones(2), torch.ones(3)]), {}, ValueError, "the same number of rows .* got 2, 3"),
        ((problems.paths, 4), {"block": 0}, ValueError, "block must be a whole number of at least 1"),
        ((problems.paths, 4), {"chunk": 2.5}, TypeError, "chunk must be a whole number of at least 1"),
        ((problems.paths, 4), {"executor": "dask"}, TypeError, r"executor must be .*executor=client.get_executor\(\)"),
        ((problems.paths, 4), {"executor": 0}, ValueError, "executor must be a whole number of at least 1, got 0, of"),
        ((problems.paths, 4), {"executor": lambda: 3}, TypeError, "the function executor= must return a conc.* got 3"),
        ((problems.paths, 4), {"store": "a", "checkpoint": "b"}, ValueError, "store is a checkpoint too: leave chec"),
        ((lambda rows: torch.ones(7, 2), 4), {}, ValueError, r"for each of its 4 rows .* \(7, 2\): sdeint has time"),
        ((lambda rows: None, 4), {}, TypeError, "solve must return"),
        ((lambda rows: "text", 4), {}, TypeError, "solve must return tensors, arrays or a BatchSolution, got str"),
        ((lambda rows: torch.ones(4, dtype=torch.bfloat16), 4), {}, TypeError, r"bfloat16, .* return value.float\(\)"),
        ((lambda rows: torch.ones(2, 1 + rows.first), 4), {"block": 2}, ValueError, "solve returns other shapes of"),
        ((lambda rows: (rows.index,) * (1 + rows.first), 4), {"block": 2}, ValueError, "other structures for some"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(arguments, options, error, words):
    with pytest.raises(error, match=words):
        ensemble(*arguments, **options)


def test_solutions_that_are_no_rows_are_refused():
    def shaped(rows):
        return solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(2, 2, 1), batch_dims=2)

    with pytest.raises(ValueError, match=re.escape("BatchSolution of its 4 rows, got one of the shape (2, 2): solve")):
        ensemble(shaped, 4)

    def dense(rows):
        return solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(4, 1), batch_dims=1, dense_output=True)

    with pytest.raises(ValueError, match=r"keeps no dense output: give t_eval, or call solution.sol\(t\) in solve"):
        ensemble(dense, 4)
