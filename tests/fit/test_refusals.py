"""What cannot be fitted is refused in a sentence that says where and what to do."""

import re
import sys
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

from simulated import simulate
from torchivp.fitting import DataError, fit, read_data
from torchivp.models import SIR, LotkaVolterra, Model

STATES = ["prey", "predator"]
GOOD = "year,hare,lynx\n1900,30,4\n1901,47.2,6.1\n1902,70.2,9.8\n1903,77.4,35.2\n1904,36.3,59.4\n1905,20.6,41.7\n"


@pytest.fixture
def csv(tmp_path):
    def write(text: str):
        path = tmp_path / "data.csv"
        path.write_text(text)
        return path

    return write


def refused(error: type[Exception], words: str):
    return pytest.raises(error, match=re.escape(words))


def test_good_data_are_read(csv):
    data = read_data(csv(GOOD), STATES, time="year", observe=["hare", "lynx"])
    assert data.observables == ["hare", "lynx"]
    assert data.states == STATES
    assert data.trajectories[0].t[-1] == 1905
    assert data.trajectories[0].rows[0] == "line 2 of data.csv"
    assert data.n_data == 12


@pytest.mark.parametrize("observe", [{"lynx": "predator"}, {"lynx": "predator", "hare": "prey"}])
def test_columns_may_be_mapped_to_states(csv, observe):
    data = read_data(csv(GOOD), STATES, time="year", observe=observe)
    assert dict(zip(data.observables, data.states, strict=True)) == observe


def test_columns_called_like_states_are_found(csv):
    data = read_data(csv("time,predator,weather,prey\n0,1,2,3\n1,4,5,6\n"), STATES)
    assert data.observables == data.states == ["predator", "prey"]
    listed = read_data(csv("time,predator,prey\n0,1,3\n1,4,6\n"), STATES, observe=["predator", "prey"])
    assert listed.states == ["predator", "prey"], "names go before order"


def test_empty_cells_and_blank_lines_are_missing(csv):
    data = read_data(csv("time,prey,predator\n0,1,2\n\n1,,4\n2,5,\n"), STATES)
    np.testing.assert_array_equal(data.trajectories[0].values, [[1, 2], [np.nan, 4], [5, np.nan]])
    assert data.trajectories[0].rows == ["line 2 of data.csv", "line 4 of data.csv", "line 5 of data.csv"]


def test_columns_observe_states_by_their_order_only_in_a_list(csv):
    path = csv("time,a,b\n0,1,2\n1,2,3\n")
    data = read_data(path, STATES, observe=["b", "a"])
    assert dict(zip(data.observables, data.states, strict=True)) == {"b": "prey", "a": "predator"}
    with refused(DataError, "say which state each observes, observe={'a': state, 'b': state}"):
        read_data(path, STATES)
    named = csv("time,prey,lynx\n0,1,2\n1,2,3\n")
    assert read_data(named, STATES, observe=["prey", "lynx"]).states == STATES


@pytest.mark.parametrize(
    "text",
    [
        "# from the field\n\ntime,prey,predator\n0,1.5,2\n# a pause\n1,,4e1\n2,5,\n",
        "time;prey;predator\n0;1,5;2\n1;;4e1\n2;5;\n",
        "time; prey; predator\n0; 1.5; 2\n1; ; 4e1\n2; 5; \n",
        "time\tprey\tpredator\n0\t1.5\t2\n1\t\t4e1\n2\t5\t\n",
        '"time;s";prey;predator;time;time\n0;+1,5;2;;\n1;;4,0e1;;\n2;5;;;\n',
        "\ufeff# year, place\r\ntime,prey,predator\r\n0,1.5,2\r\n1,,4e1\r\n2,5,\r\n",
    ],
)
def test_comments_semicolons_tabs_and_decimal_commas_are_read(csv, text):
    time = "time;s" if "time;s" in text else "time"
    (trajectory,) = read_data(csv(text), STATES, time=time).trajectories
    np.testing.assert_array_equal(trajectory.t, [0, 1, 2])
    np.testing.assert_array_equal(trajectory.values, [[1.5, 2], [np.nan, 40], [5, np.nan]])


def test_errors_count_the_lines_of_comments(csv):
    with refused(DataError, "column 'prey' must hold numbers, but holds 'many' in line 6 of data.csv"):
        read_data(csv("# a\n# b\ntime,prey\n0,1\n# c\n1,many\n"), STATES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "time,prey,predator\n0,1,5,2,5\n1,2,5,3,5\n",
            "Expected 3 fields in line 2, saw 5: a line has more cells than the header; decimal commas need semicolons",
        ),
        ("time,prey\n0,1,\n1,2,\n", "Expected 2 fields in line 2, saw 3"),
        (
            "time;prey\n0;1,5\n1;1.234\n",
            "data.csv has decimal commas, so column 'prey' must not hold '1.234' in line 3 of data.csv: write all",
        ),
        ("time\tprey\n0\t1,234\n1\t2\n", "column 'prey' must hold numbers, but holds '1,234' in line 2"),
        ('time,prey\n0,"1,234"\n1,2\n', "column 'prey' must hold numbers, but holds '1,234' in line 2"),
        (
            "time,prey\n2020-01-01,1\n2020-01-02,2\n",
            "column 'time' must hold numbers, but holds '2020-01-01' in line 2 of data.csv: count from the first date, "
            "time_unit='days'",
        ),
        ("# nothing\n\n", "data.csv is empty"),
        ("time,prey,prey\n0,1,2\n1,2,3\n", "data.csv has 2 columns called 'prey': rename all but one"),
    ],
)
def test_what_could_be_misread_is_refused(csv, text, words):
    with refused(DataError, words):
        read_data(csv(text), STATES)


def test_dates_and_durations_of_a_table_are_refused():
    table = pd.DataFrame({"time": pd.date_range("2020-01-01", periods=3), "prey": [1.0, 2.0, 3.0]})
    for dates in (table["time"], table["time"].dt.tz_localize("UTC"), table["time"].dt.date.astype(object)):
        with refused(DataError, "in row 0: count from the first date, time_unit='days'"):
            read_data(table.assign(time=dates), STATES)
    with refused(DataError, "in row 0: take them in a unit, time_unit='days'"):
        read_data(table.assign(time=pd.to_timedelta([0, 1, 2], "D")), STATES)
    with refused(DataError, "column 'prey' must hold numbers, but holds '(1+2j)' in row 0"):
        read_data(table.assign(time=[0, 1, 2], prey=[1 + 2j, 2, 3]), STATES)


def test_columns_may_be_called_by_numbers():
    table = pd.DataFrame([[0, 1.0, 2.0], [1, 2.0, 3.0]])
    data = read_data(table, STATES, time=0, observe={2: "prey", 1: "predator"})
    np.testing.assert_array_equal(data.trajectories[0].values, [[2, 1], [3, 2]])
    assert (data.time_name, data.observables) == ("0", ["2", "1"])
    with refused(DataError, "the DataFrame has no data column '3'. Its columns are 0, 1, 2"):
        read_data(table, STATES, time=0, observe={3: "prey"})


def test_columns_of_one_name_are_refused_where_they_are_asked_for():
    table = pd.DataFrame([[0, 1.0, 2.0], [1, 2.0, 3.0]])
    for column, options in {"time": {}, "prey": {}, "run": {"trajectory": "run"}}.items():
        names = [column, column] + [name for name in ("time", "prey") if name != column]
        doubled = table.assign(b=1.0).iloc[:, : len(names)].set_axis(names, axis=1)
        with refused(DataError, f"the DataFrame has 2 columns called {column!r}: rename all but one"):
            read_data(doubled, STATES, **options)


def test_rows_of_no_trajectory_are_refused():
    table = pd.DataFrame({"time": [0, 1, 0, 1], "prey": [1.0, 2.0, 3.0, 4.0], "run": ["a", "a", None, "b"]})
    with refused(DataError, "the trajectory column 'run' is empty in row 2"):
        read_data(table, STATES, trajectory="run")


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, "data.csv is empty"),
        ("time,prey,predator\n", {}, "data.csv holds no rows below its header"),
        (GOOD, {}, "data.csv has no time column 'time'. Its columns are year, hare, lynx"),
        (GOOD, {"time": "yaer"}, "no time column 'yaer'. Did you mean 'year'? Its columns are year, hare, lynx"),
        (GOOD, {"time": "year", "observe": ["hare", "lnyx"]}, "no data column 'lnyx'. Did you mean 'lynx'?"),
        (GOOD, {"time": "year", "trajectory": "site"}, "no trajectory column 'site'"),
        (GOOD, {"time": "year", "observe": ["hare"]}, "observe lists 1 columns (hare) for the 2 states prey, predator"),
        (GOOD, {"time": "year", "observe": {"hare": "pray"}}, "'hare' is to observe 'pray', but the states are prey"),
        (GOOD, {"time": "year", "observe": {}}, "observe names no column"),
        (
            "year,lynx,hare\n1900,4,30\n1901,6.1,47.2\n",
            {"time": "year"},
            "no column of data.csv is called like one of the states prey, predator: say which state each observes, "
            "observe={'lynx': state, 'hare': state}",
        ),
        (GOOD, {"time": "year", "observe": ["hare", "hare"]}, "observe lists 'hare' twice: hare, hare"),
        (
            "time,prey,lynx\n0,1,2\n1,2,3\n",
            {"observe": ["lynx", "prey"]},
            "by its place 'prey' observes 'predator', by its name another state; say which, observe={column: state}",
        ),
        (
            "time,prey,predator\n0,1,2\n1,many,4\n",
            {},
            "column 'prey' must hold numbers, but holds 'many' in line 3 of data.csv",
        ),
        ("time,prey,predator\n0,1,2\n1,inf,4\n", {}, "column 'prey' must hold numbers, but holds 'inf' in line 3"),
        ("time,prey,predator\n0,1,2\n,3,4\n", {}, "the time column 'time' is empty in line 3 of data.csv"),
        ("time,prey,predator\n0,1,2\n", {}, "too few data: there is only one time"),
        ("time,prey,predator\n0,1,\n1,2,\n", {}, "column 'predator' of data.csv holds no values"),
        ('time,prey,predator\n0,"1,2\n1,2,3\n', {}, "data.csv is not a CSV file"),
    ],
)
def test_bad_data_are_refused(csv, text, options, words):
    with refused(DataError, words):
        fit(LotkaVolterra(), csv(text), **options)


def test_other_sources_are_refused(tmp_path):
    with refused(DataError, f"there is no file {tmp_path / 'no.csv'}"):
        fit(LotkaVolterra(), tmp_path / "no.csv")
    with refused(DataError, "the DataFrame holds no rows"):
        fit(LotkaVolterra(), pd.DataFrame({"time": [], "prey": [], "predator": []}))
    with refused(TypeError, "data must be the path of a table, a DataFrame or a dict of columns, got list"):
        fit(LotkaVolterra(), [1, 2, 3])
    with refused(DataError, "column 'prey' must hold numbers, but holds 'x' in row 1"):
        fit(LotkaVolterra(), pd.DataFrame({"time": [0, 1], "prey": [1, "x"], "predator": [1, 2]}))


def test_lognormal_noise_needs_positive_data(csv):
    path = csv(GOOD.replace("35.2", "0"))
    with refused(
        DataError,
        "column 'lynx' holds 0 in line 5 of data.csv, which is not positive, as data with lognormal noise are",
    ):
        fit(LotkaVolterra(), path, time="year", observe=["hare", "lynx"], noise="lognormal")


def test_there_must_be_more_data_than_unknowns(csv):
    path = csv("time,prey,predator\n0,1,1\n1,2,2\n2,3,3\n3,4,4\n")
    with refused(DataError, "too few data: 8 values for 8 free quantities, sigmas included: hold some, fixed="):
        fit(LotkaVolterra(), path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise": "poison"}, "unknown noise 'poison'. Did you mean 'poisson'?"),
        ({"noise": "poisson"}, "column 'prey' holds 1.07977 in row 1, which is not a whole number from 0 on"),
        ({"noise": {"hare": "normal"}}, "noise names 'hare', but the observables are prey, predator"),
        ({"noise": "poisson", "sigma": 2.0}, "sigma gives prey one number, and poisson noise has no sizes"),
        ({"sigma": "one"}, "sigma must be one of ('separate', 'shared') or a positive number, got 'one'"),
        ({"method": "rk4"}, "'rk4' takes fixed steps, and a fit needs an adaptive method such as 'dopri5'"),
        ({"method": "dopri"}, "unknown method 'dopri'"),
        ({"fixed": {"alhpa": 1.0}}, "fixed names 'alhpa', which is no parameter or state. Did you mean 'alpha'?"),
        ({"free": ["omega"]}, "There are alpha, beta, gamma, delta, prey, predator, prey(0), predator(0)"),
        ({"start": {"alpha": float("nan")}}, "start gives alpha the value nan, which is not a finite number"),
        (
            {"start": {"alpha": -1.0}},
            "alpha is estimated on the log scale, so its start value must be positive, got -1",
        ),
        ({"free": ["alpha"], "fixed": {"alpha": 1.0}}, "alpha cannot be both free and fixed"),
        ({"free": []}, "nothing is free, so there is nothing to fit"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, words):
    with refused(ValueError, words):
        fit(LotkaVolterra(), simulate(LotkaVolterra(), np.linspace(0, 1, 9)), **options)


def test_only_a_model_can_be_fitted():
    data = simulate(SIR(), np.linspace(0, 1, 9))
    with refused(TypeError, "model must be a torchivp.models.Model, got function"):
        fit(lambda t, y: -y, data)


def test_a_model_that_cannot_be_solved_is_refused():
    class Undefined(Model):
        states: ClassVar = {"prey": "", "predator": ""}
        default_state = (1.0, 1.0)

        def __init__(self):
            super().__init__(rate=1.0)

        def forward(self, t, y):
            return torch.sqrt(-self.rate - y**2)

    data = simulate(LotkaVolterra(), np.linspace(0, 1, 5))
    with refused(RuntimeError, "cannot be solved from the start that was given: func is not finite at t = 0"):
        fit(Undefined(), data, start={"rate": 2.0})
    with refused(
        RuntimeError, "from any start: give start={name: value, ...}. From the defaults of the model: func is"
    ):
        fit(Undefined(), data)


def test_predictions_outside_the_data_are_refused():
    data = simulate(LotkaVolterra(), np.linspace(0, 2, 9), noise=0.01)
    result = fit(LotkaVolterra(), data, start=LotkaVolterra().values())
    with refused(ValueError, "cannot predict at -1, before the first data time 0"):
        result.predict([1.0, -1.0])
    with refused(ValueError, "there is no trajectory 1: they are numbered from 0 to 0"):
        result.predict([1.0], trajectory=1)
    with refused(KeyError, "no estimate is called 'a'; there are alpha, beta"):
        result["a"]


def test_without_pandas_the_message_says_what_to_install(monkeypatch):
    result = fit(LotkaVolterra(), simulate(LotkaVolterra(), np.linspace(0, 2, 9)), start=LotkaVolterra().values())
    monkeypatch.setitem(sys.modules, "pandas", None)
    with refused(ImportError, "showing results as tables needs pandas: pip install 'torchivp[fit]'"):
        result.summary()


def test_a_right_hand_side_that_takes_only_single_precision_is_refused():
    class Mixed(Model):
        states: ClassVar = {"a": ""}
        default_state = (1.0,)

        def __init__(self):
            super().__init__(rate=1.0)
            self.matrix = torch.tensor([[-1.0]], dtype=torch.float32)

        def forward(self, t, y):
            return self.rate * (y @ self.matrix)

    data = pd.DataFrame({"time": [0.0, 1.0, 2.0, 3.0], "a": [1.0, 0.5, 0.2, 0.1]})
    with refused(ValueError, "a fit solves in float64, and the right-hand side of Mixed takes only float32 (") as told:
        fit(Mixed(), data)
    assert "register its tensors, self.register_buffer(name, tensor), or make them float64" in str(told.value)


def test_a_right_hand_side_that_fails_in_any_precision_says_what_torch_says():
    class Wrong(LotkaVolterra):
        def forward(self, t, y):
            return y @ torch.ones(3, 3)

    with refused(RuntimeError, "shapes cannot be multiplied"):
        fit(Wrong(), simulate(LotkaVolterra(), np.linspace(0, 2, 9)))
