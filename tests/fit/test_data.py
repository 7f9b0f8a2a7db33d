"""Tables in every form, read back, and bad tables, refused with the place."""

import datetime
import pickle
import re
import sys

import numpy as np
import openpyxl
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import torchivp
from torchivp.data import TrajectoryDataset
from torchivp.fitting import DataError, Dataset, Infusion, Trajectory, read_data, read_doses

NAN = np.nan
STATES = ["prey", "predator"]
COLUMNS = {"time": [0, 1, 2], "prey": [1.5, None, 5.0], "predator": [2.0, 40.0, None]}
VALUES = [[1.5, 2], [NAN, 40], [5, NAN]]
SERIES = "run,time,prey\na,0,1\na,1,2\nb,0,3\nb,1,4\n"


@pytest.fixture
def csv(tmp_path):
    def write(text: str, name: str = "data.csv", encoding: str = "utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write


def refused(error: type[Exception], words: str):
    return pytest.raises(error, match=re.escape(words))


def only(data: Dataset) -> Trajectory:
    (trajectory,) = data.trajectories
    return trajectory


def check_columns(source, row: str):
    series = only(read_data(source, STATES))
    np.testing.assert_array_equal(series.t, [0, 1, 2])
    np.testing.assert_array_equal(series.values, VALUES)
    assert series.t.dtype == series.values.dtype == np.float64
    assert series.rows[1] == row
    assert (series.sigma, series.censored, series.constants, series.labels) == (None, None, {}, {})


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame(COLUMNS),
        pd.DataFrame(COLUMNS).convert_dtypes(),
        pd.DataFrame(COLUMNS).astype(object),
        pl.DataFrame(COLUMNS),
        pl.DataFrame(COLUMNS).with_columns(pl.col("prey").cast(pl.Decimal(10, 2)), pl.col("time").cast(pl.UInt8)),
        pa.table(COLUMNS),
        COLUMNS,
        {"time": torch.arange(3), "prey": torch.tensor([1.5, NAN, 5]), "predator": np.array([2, 40, NAN])},
        {"time": pd.Series([0, 1, 2]), "prey": (1.5, NAN, "5"), "predator": pl.Series([2, 40, None])},
        {"time": range(3), "prey": [torch.tensor(1.5), None, 5], "predator": torch.tensor([2, 40, NAN]).bfloat16()},
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_data_in_memory_are_read(frame):
    check_columns(frame, "row 1")


def test_files_are_read_back(tmp_path):
    frame = pd.DataFrame(COLUMNS)
    frame.to_parquet(tmp_path / "a.parquet", index=False)
    check_columns(tmp_path / "a.parquet", "row 1 of a.parquet")
    frame.to_excel(tmp_path / "a.xlsx", index=False)
    check_columns(tmp_path / "a.xlsx", "row 3 of a.xlsx")
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    check_columns(str(tmp_path / "a.tsv"), "line 3 of a.tsv")


def test_parquet_is_read_by_polars_where_there_is_no_pyarrow(tmp_path, monkeypatch):
    pl.DataFrame(COLUMNS).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("time,prey\n")
    with refused(DataError, "b.parquet is not a Parquet file: "):
        read_data(tmp_path / "b.parquet", STATES)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    check_columns(tmp_path / "a.parquet", "row 1 of a.parquet")
    with refused(DataError, "b.parquet is not a Parquet file: "):
        read_data(tmp_path / "b.parquet", STATES)


def test_sheets_of_a_workbook(tmp_path):
    path = tmp_path / "book.xlsx"
    book = openpyxl.Workbook()
    book.active.append(["nothing", "here"])
    sheet = book.create_sheet("Field trip")
    sheet.append([])
    sheet.append(["time", None, "prey", "site"])
    sheet.append([0, None, 1.5, "Kew"])
    sheet.append([1, None, "<2", "Kew"])
    book.create_sheet("Empty")
    book.save(path)
    series = only(read_data(f"{path}#Field trip", STATES))
    np.testing.assert_array_equal(series.values, [[1.5], [2]])
    assert series.rows == ["row 3 of book.xlsx#Field trip", "row 4 of book.xlsx#Field trip"]
    assert series.censored.tolist() == [[0], [-1]] and series.labels == {"site": "Kew"}
    for source, words in {
        path: "book.xlsx holds no rows below its header",
        f"{path}#Empty": "book.xlsx#Empty is empty",
        f"{path}#Field": "has no sheet 'Field'. Did you mean 'Field trip'? Its sheets are Sheet, Field trip, Empty",
        f"{tmp_path / 'no.xlsx'}#Field": f"there is no file {tmp_path / 'no.xlsx'}",
    }.items():
        with refused(DataError, words):
            read_data(source, STATES)


@pytest.mark.parametrize(
    ("encoding", "notes"),
    [
        ("utf-8", []),
        ("utf-8-sig", []),
        ("utf-16", []),
        ("cp1252", ["data.csv is not in UTF-8, and was read as Windows-1252"]),
    ],
)
def test_encodings_are_found_out(csv, encoding, notes):
    data = read_data(csv("Größe;time\n1,5;0\n2,5;1\n", encoding=encoding), STATES, observe={"Größe": "prey"})
    np.testing.assert_array_equal(only(data).values, [[1.5], [2.5]])
    assert data.notes == notes


@pytest.mark.parametrize(
    "text",
    [
        "time\tprey\tpredator\n0\t1,5\t2\n1\t\t40\n2\t5\tNA\n",
        "time  prey predator\n  0  1.5   2\n1\t. 4e1  \n\n2 5 -\n",
        '"prey";time;predator\n1,5;0;2\nn/a;1;40,000\n5;2;.\n',
        "time,prey,predator\r0,1.5,2\r1,NaN,40\r2,5\r",
        'time,note,prey,predator\n0,"two\nlines",1.5,2\n1,,null,40\n\n2,"a ""quote"", a comma",5,\n',
    ],
)
def test_text_files_of_many_kinds_are_read(csv, text):
    np.testing.assert_array_equal(only(read_data(csv(text), STATES)).values, VALUES)


def test_the_line_of_a_row_is_counted_where_cells_span_lines(csv):
    with refused(DataError, "column 'prey' must hold numbers, but holds 'x' in line 6 of data.csv"):
        read_data(csv('# c\ntime,note,prey\n0,"two\nlines",1\n\n1,,x\n'), STATES)


def test_rows_are_sorted_by_time_and_replicates_stay(csv):
    data = read_data(csv("time,prey\n2,5\n0,1\n2,6\n0,2\n"), STATES)
    series = only(data)
    assert series.t.tolist() == [0, 0, 2, 2] and series.values[:, 0].tolist() == [1, 2, 5, 6]
    assert series.rows == [f"line {i} of data.csv" for i in (3, 5, 2, 4)]
    assert data.notes == [
        "the rows were sorted by time: time goes from 2 to 0 in line 3 of data.csv; if there are several time series, "
        "name the column that tells them apart, trajectory='column'"
    ]
    assert not read_data(csv("time,prey\n0,1\n0,2\n2,5\n"), STATES).notes


def test_trajectories_are_sorted_each_on_its_own(csv):
    data = read_data(csv("run,time,prey\na,0,1\nb,3,3\na,1,2\nb,1,4\nc,7,1\n"), STATES, trajectory="run")
    assert [(each.name, each.t.tolist()) for each in data.trajectories] == [("a", [0, 1]), ("b", [1, 3]), ("c", [7])]
    assert data.notes == ["the rows of trajectory 'b' were sorted by time: time goes from 3 to 1 in line 5 of data.csv"]
    assert data.trajectory_name == "run"


def test_names_of_trajectories_are_the_same_in_every_form():
    names = ([1, 1, 2, 2], [1.0, 1.0, 2.0, 2.0], ["1", "1", "2", "2"])
    for runs in names:
        data = read_data({"run": runs, "time": [0, 1, 0, 1], "prey": [1, 2, 3, 4]}, STATES, trajectory="run")
        assert [each.name for each in data.trajectories] == ["1", "2"]


def test_what_columns_observe():
    def total(y):
        return y.sum(-1)

    table = {"time": [0, 1], "a": [1, 2], "b": [3, 4], "c": [5, 6], "d": [7, 8], "e": [9, 0]}
    observe = {"a": "predator", "b": "prey + predator", "c": total, "d": "pray", "e": "biomass"}
    data = read_data(table, STATES, observe=observe, names=["pray"])
    assert data.observe == observe and data.observables == list("abcde")
    assert data.states == ["predator", None, None, None, None]
    with refused(DataError, "'d' is to observe 'pray', but the states are prey, predator. Did you mean 'prey'?"):
        read_data(table, STATES, observe=observe)
    for spec in ("", "  ", "3.5", 3, None, ["prey"]):
        with refused(DataError, f"column 'a' is to observe {spec!r}, which is no state, expression or function: name"):
            read_data(table, STATES, observe={"a": spec})


def test_a_dataset_made_by_hand_observes_its_states():
    series = Trajectory("", np.arange(2.0), np.ones((2, 1)), ["row 0", "row 1"])
    assert Dataset([series], ["a"], ["prey"], "time", "hand").observe == {"a": "prey"}
    with refused(DataError, "column 'a' observes no state: say what it does, observe={'a': ...}"):
        Dataset([series], ["a"], [None], "time", "hand")
    for change, words in {
        "values": "needs values of shape (2, n_observed) and 2 rows, got values of shape (2,) and 2 rows",
        "sigma": "sigma must have the shape of values, (2, 1), got (2,)",
        "censored": "censored must have the shape of values, (2, 1), got (2,)",
    }.items():
        with refused(DataError, words):
            Trajectory(**{**vars(series), change: np.ones(2)})
    for t in ([1.0, 0.0], [0.0, NAN]):
        with refused(DataError, "the times of a trajectory must be in order, and none NaN"):
            Trajectory(**{**vars(series), "t": np.array(t)})


# Noise and limits


def test_standard_deviations_are_read(csv):
    text = "time,prey,predator,sd\n0,1,2,0.1\n1,,3,\n2,4,5,0.3\n"
    series = only(read_data(csv(text), STATES, sigma={"prey": "sd"}))
    np.testing.assert_array_equal(series.sigma, [[0.1, NAN], [NAN, NAN], [0.3, NAN]])


@pytest.mark.parametrize("signs", [[-1, 0, 1, None], ["<", "none", ">", ""], ["Left", "0", "RIGHT", "NA"]])
def test_signs_of_censoring_are_read(signs):
    table = {"time": range(4), "prey": [1, 2, 3, 4], "predator": [1] * 4, "signs": signs}
    series = only(read_data(table, STATES, censored={"prey": "signs"}))
    assert series.censored.tolist() == [[-1, 0], [0, 0], [1, 0], [0, 0]] and series.censored.dtype == np.int8


def test_limits_in_cells_are_read(csv):
    data = read_data(csv('time;prey;predator\n0;<0,5;1\n1;1,5;"> 100"\n2;<= 0,25;3\n'), STATES)
    series = only(data)
    np.testing.assert_array_equal(series.values, [[0.5, 1], [1.5, 100], [0.25, 3]])
    assert series.censored.tolist() == [[-1, 0], [0, 1], [-1, 0]]
    assert data.notes == [
        "2 cells of column 'prey', such as '<0,5' in line 2 of data.csv, were read as censored at that limit",
        "1 cell of column 'predator', such as '> 100' in line 3 of data.csv, was read as censored at that limit",
    ]
    assert data.n_data == 6 and data.column(1).tolist() == [1, 100, 3]


def test_limits_in_cells_and_signs_add_up(csv):
    path = csv("time,prey,side\n0,<1,\n1,2,>\n2,3,0\n3,<4,<\n")
    assert only(read_data(path, STATES, censored={"prey": "side"})).censored[:, 0].tolist() == [-1, 1, 0, -1]


# Long form


LONG = (
    "run,hour,what,value,sd,limit,arm\n"
    "a,1,predator,20,2,,low\n"
    "a,0,prey,1,0.1,,low\n"
    "a,0,predator,10,1,,low\n"
    "a,1,prey,2,0.2,<,low\n"
    "a,1,prey,3,0.3,,low\n"
    "b,0,prey,4,0.4,,high\n"
    "b,0,weather,99,-1,,high\n"
    "b,2,prey,5,0.5,,high\n"
)


def test_tables_of_long_form(csv):
    options = {"time": "hour", "trajectory": "run", "long": ("what", "value"), "sigma": "sd", "censored": "limit"}
    data = read_data(csv(LONG), STATES, observe={"prey": "prey", "predator": "predator"}, **options)
    a, b = data.trajectories
    assert a.t.tolist() == [0, 1, 1] and b.t.tolist() == [0, 2]
    np.testing.assert_array_equal(a.values, [[1, 10], [2, 20], [3, NAN]])
    np.testing.assert_array_equal(a.sigma, [[0.1, 1], [0.2, 2], [0.3, NAN]])
    assert a.censored.tolist() == [[0, 0], [-1, 0], [0, 0]]
    np.testing.assert_array_equal(b.values, [[4, NAN], [5, NAN]])
    assert a.rows[1] == "line 2 of data.csv, line 5 of data.csv" and b.rows[0] == "line 7 of data.csv"
    assert (a.labels, b.labels) == ({"arm": "low"}, {"arm": "high"})
    renamed = read_data(csv(LONG.replace("weather", "prey")), STATES, observe=["predator"], **options | {"sigma": None})
    assert renamed.observables == ["predator"] and [each.name for each in renamed.trajectories] == ["a"]


def test_long_form_without_observe_takes_all_that_is_measured(csv):
    path = csv("time,what,value\n0,prey,1\n0,k,2\n1,prey,3\n1,k,4\n")
    data = read_data(path, STATES, long=("what", "value"), names=["k"])
    assert data.observe == {"prey": "prey", "k": "k"} and data.states == ["prey", None]
    np.testing.assert_array_equal(only(data).values, [[1, 2], [3, 4]])
    words = (
        "names 'k', which is none of the states prey, predator: Say what each observes, and leave out what is not to"
    )
    with refused(DataError, words):
        read_data(path, STATES, long=("what", "value"))


def test_a_wide_and_a_long_table_of_the_same_data_agree():
    wide = pd.DataFrame({"run": list("aabb"), "time": [0, 1, 0, 2], "prey": [1.0, 2, 3, 4], "predator": [5.0, 6, 7, 8]})
    long = wide.melt(["run", "time"], var_name="what", value_name="value").sample(frac=1, random_state=0)
    first = read_data(wide, STATES, trajectory="run")
    second = read_data(long, STATES, trajectory="run", long=("what", "value"), observe=STATES)
    by_name = {each.name: each for each in second.trajectories}
    for each in first.trajectories:
        np.testing.assert_array_equal(each.t, by_name[each.name].t)
        np.testing.assert_array_equal(each.values, by_name[each.name].values)


def test_a_long_table_is_in_order_if_each_quantity_is():
    long = {"time": [0, 1, 0, 1], "what": ["prey", "prey", "predator", "predator"], "value": [1, 2, 3, 4]}
    assert not read_data(long, STATES, long=("what", "value")).notes
    long["time"] = [1, 0, 0, 1]
    (note,) = read_data(long, STATES, long=("what", "value")).notes
    assert note.startswith("the rows were sorted by time: time goes from 1 to 0 in row 1")


# Conditions


@pytest.mark.parametrize(
    "conditions",
    [
        {"a": {"dose": 5, "arm": "low", "kind": "1"}, "b": {"arm": "high", "kind": "x"}},
        pl.DataFrame({"who": ["b", "a"], "dose": [None, 5], "arm": ["high", "low"], "kind": ["x", "1"]}),
        "who;dose;arm;kind\nb;;high;x\na;5,0;low;1\n",
        "dose,arm,run,kind\n,high,b,x\n5,low,a,1\n",
    ],
)
def test_conditions_of_trajectories(csv, conditions):
    data = csv(SERIES)
    source = csv(conditions, "conditions.csv") if isinstance(conditions, str) else conditions
    read = read_data(data, STATES, trajectory="run", conditions=source)
    a, b = read.trajectories
    assert (a.constants, b.constants) == ({"dose": 5.0}, {})
    assert (a.labels, b.labels) == ({"arm": "low", "kind": "1"}, {"arm": "high", "kind": "x"})
    assert [note.split(" of ")[0] for note in read.notes] == ["column 'kind'"]
    assert "holds numbers and text, and was read as text" in read.notes[0]


def test_rows_of_conditions_without_data_are_ignored_with_a_note(csv):
    conditions = {name: {"dose": 1.0} for name in "cab"}
    data = read_data(csv(SERIES), STATES, trajectory="run", conditions=conditions)
    assert data.notes == ["the dict of conditions has rows for c, of which there are no data: they were ignored"]
    assert [each.constants for each in data.trajectories] == [{"dose": 1.0}] * 2


def test_constant_columns_of_text_are_labels(csv):
    text = "run,time,prey,arm,note,number\na,0,1,low,x,1\na,1,2,low,,1\nb,0,3,,z,2\nb,1,4,,z,2\n"
    data = read_data(csv(text), STATES, trajectory="run")
    assert [each.labels for each in data.trajectories] == [{"arm": "low"}, {}]
    single = read_data({"time": [0, 1], "prey": [1, 2], "arm": ["low", "low"]}, STATES)
    assert only(single).labels == {"arm": "low"}


# Dates


DATES = ["2024-02-28", "2024-02-29", "2024-03-06T12:00"]


@pytest.mark.parametrize(
    ("unit", "t"),
    [
        ("days", [0, 1, 7.5]),
        ("hours", [0, 24, 180]),
        ("minutes", [0, 1440, 10800]),
        ("seconds", [0, 86400, 648000]),
        ("weeks", [0, 1 / 7, 7.5 / 7]),
        ("years", [0, 1 / 365.25, 7.5 / 365.25]),
    ],
)
def test_dates_are_counted_in_a_unit(csv, unit, t):
    stamps = pd.to_datetime(DATES, format="ISO8601")
    sources = [
        csv("time,prey\n" + "".join(f"{each},1\n" for each in DATES)),
        {"time": DATES, "prey": [1, 2, 3]},
        {"time": np.array(DATES, dtype="datetime64[ns]"), "prey": [1, 2, 3]},
        pd.DataFrame({"time": stamps, "prey": [1, 2, 3]}),
        pd.DataFrame({"time": stamps.tz_localize("UTC"), "prey": [1, 2, 3]}),
        pl.DataFrame({"time": stamps.to_pydatetime(), "prey": [1, 2, 3]}),
    ]
    for source in sources:
        data = read_data(source, STATES, time_unit=unit)
        np.testing.assert_allclose(only(data).t, t, rtol=1e-15)
        assert data.notes == [f"times were counted in {unit} from 2024-02-28, the first date of column 'time'"]


def test_dates_of_all_trajectories_are_counted_from_the_first():
    dates = [datetime.date(2024, 1, 5), datetime.date(2024, 1, 6), datetime.date(2024, 1, 2), datetime.date(2024, 1, 3)]
    data = read_data(
        {"time": dates, "prey": [1, 2, 3, 4], "run": list("aabb")}, STATES, trajectory="run", time_unit="days"
    )
    assert [each.t.tolist() for each in data.trajectories] == [[3, 4], [0, 1]]


def test_a_day_on_which_summer_time_begins_has_23_hours():
    stamps = pd.date_range("2024-03-31", periods=2, tz="Europe/Berlin")
    for frame in (pd.DataFrame({"time": stamps, "prey": 1}), pl.DataFrame({"time": stamps.to_pydatetime(), "prey": 1})):
        data = read_data(frame, STATES, time_unit="hours")
        assert only(data).t.tolist() == [0, 23]
        assert data.notes == [
            "times were counted in hours from 2024-03-30 23:00:00+00:00, the first date of column 'time'"
        ]


def test_durations_are_taken_in_a_unit():
    durations = pd.to_timedelta([12, 36], "h")
    data = read_data(pd.DataFrame({"time": durations, "prey": 1}), STATES, time_unit="days")
    assert only(data).t.tolist() == [0.5, 1.5]
    assert data.notes == ["the durations in column 'time' were taken in days"]


# Doses


def test_doses_by_trajectory_and_state(csv):
    path = csv("who,time,amount,into\na,2,10,predator\na,0,5,prey\nc,1,7,prey\na,0,1,prey\n")
    doses = read_doses(path, ["a", "b", "c"], STATES, trajectory="who", state="into")
    assert [len(doses[name]) for name in "abc"] == [2, 0, 1]
    prey, predator = doses["a"]
    assert (prey.times.tolist(), prey.values.tolist()) == ([0], [6])
    assert (predator.times.tolist(), predator.values.tolist()) == ([2], [10])
    y, t = torch.zeros(3, 2, dtype=torch.float64), torch.tensor(2.0)
    assert predator.apply(t, y[0], predator.values[0]).tolist() == [0, 10]
    assert predator.apply(t, y, torch.arange(3)).tolist() == [[0, 0], [0, 1], [0, 2]]
    assert pickle.loads(pickle.dumps(predator)).apply(t, y.float(), 1.0).dtype == torch.float32


def test_doses_of_every_trajectory_go_to_the_first_state(csv):
    doses = read_doses(csv("h,mg\n1,10\n0,20\n"), ["a", "b"], STATES, time="h", amount="mg")
    assert list(doses) == ["a", "b"]
    for (each,) in doses.values():
        assert (each.times.tolist(), each.values.tolist()) == ([0, 1], [20, 10])


def test_infusions_by_duration_or_rate(csv):
    text = "time,amount,duration,rate,state\n0,6,3,,prey\n1,6,,3,predator\n2,6,0,,prey\n3,6,,0,prey\n"
    bolus, first, second = read_doses(csv(text), [""], STATES)[""]
    assert (bolus.times.tolist(), bolus.values.tolist()) == ([2, 3], [6, 6])
    assert (first, second) == (Infusion(0, 0.0, 3.0, 2.0), Infusion(1, 1.0, 3.0, 3.0))
    (bolus,) = read_doses(csv(text), [""], STATES, duration=None, rate=None, state=None)[""]
    assert bolus.times.tolist() == [0, 1, 2, 3]
    (bolus,) = read_doses({"time": [1.0], "amount": [6.0], "duration": [1e-17]}, [""], STATES)[""]
    assert (bolus.times.tolist(), bolus.values.tolist()) == ([1], [6]), "it is over before time goes on"


def test_dates_of_doses_are_counted_as_those_of_the_data():
    data = read_data({"time": ["2020-03-02", "2020-03-03"], "prey": [1, 2]}, STATES, time_unit="hours")
    (dose,) = read_doses(
        {"time": ["2020-03-01T12:00", "2020-03-02"], "amount": [1, 2]}, [""], STATES, calendar=data.calendar
    )[""]
    assert dose.times.tolist() == [-12, 0]
    for time, words in {
        "3": "the times of the data are dates, but column 'time' of the dict of doses holds '3' in row 0: write dates",
        "2020-03-01T12:00+01:00": "dates of the dict of doses have a time zone, and those of the data have none: write",
    }.items():
        with refused(DataError, words):
            read_doses({"time": [time], "amount": [1]}, [""], STATES, calendar=data.calendar)


def test_doses_act_in_a_solve_as_they_should():
    """One compartment: the sum of the doses, each decayed since it was given."""
    times, amounts, rate = [0.0, 1.0, 2.5], [10.0, 5.0, 8.0], 0.7
    (dose,) = read_doses({"time": times, "amount": amounts}, [""], ["amount"])[""]
    t = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
    y0 = torch.zeros(1, dtype=torch.float64)
    solution = torchivp.solve_ivp(
        lambda t, y: -rate * y, (0.0, 4.0), y0, t_eval=t, events=[dose], rtol=1e-10, atol=1e-12
    )
    exact = [
        sum(a * np.exp(-rate * (s - u)) for u, a in zip(times, amounts, strict=True) if u <= s) for s in t.tolist()
    ]
    np.testing.assert_allclose(solution.y[..., 0], exact, rtol=1e-8)


# Refusals


SD = {"sigma": {"prey": "sd"}}
SIDE = {"censored": {"prey": "side"}}
PAIR = {"long": ("what", "value")}
RUN = {"trajectory": "run"}

BAD = [
    # noise and limits
    (
        "time,prey,sd\n0,1,0.1\n1,2,0\n",
        SD,
        "the sigma column 'sd' must hold a positive standard deviation for each value",
    ),
    ("time,prey,sd\n0,1,0.1\n1,2,0\n", SD, "of 'prey', but holds 0 in line 3 of data.csv"),
    ("time,prey,sd\n0,1,0.1\n1,2,-1\n", SD, "but holds -1 in line 3"),
    ("time,prey,sd\n0,1,0.1\n1,2,\n", SD, "but is empty in line 3"),
    ("time,prey,sd\n0,1,0.1\n1,2,<1\n", SD, "column 'sd' must hold numbers, but holds '<1' in line 3"),
    ("time,prey\n0,1\n1,2\n", SD, "data.csv has no sigma column 'sd'. Its columns are time, prey"),
    (
        "time,prey,sd\n0,1,1\n1,2,1\n",
        {"sigma": {"pry": "sd"}},
        "sigma names the column 'pry', which is not observed: the",
    ),
    ("time,prey,sd\n0,1,1\n1,2,1\n", {"sigma": "sd"}, "sigma={'prey': 'column'}, got 'sd'"),
    (
        "time,prey,side\n0,1,\n1,2,low\n",
        SIDE,
        "the censored column 'side' must hold '<', 'left' or -1, '>', 'right' or 1",
    ),
    ("time,prey,side\n0,1,\n1,2,low\n", SIDE, "or 0, 'none' or nothing, but holds 'low' in line 3 of data.csv"),
    (
        "time,prey,side\n0,1,\n1,,<\n",
        SIDE,
        "column 'side' says that column 'prey' is censored in line 3 of data.csv, where",
    ),
    (
        "time,prey,side\n0,1,\n1,<1,>\n",
        SIDE,
        "columns 'prey' and 'side' contradict each other in line 3 of data.csv: one",
    ),
    ("time,prey\n0,1\n1,<LOD\n", {}, "column 'prey' must hold numbers, but holds '<LOD' in line 3"),
    ("time,prey\n0,1\n1,<\n", {}, "column 'prey' must hold numbers, but holds '<' in line 3"),
    ("time,prey\n0,1\n<1,2\n", {}, "column 'time' must hold numbers, but holds '<1' in line 3"),
    ("time;prey\n0;1,5\n1;<1.5\n", {}, "data.csv has decimal commas, so column 'prey' must not hold '<1.5' in line 3"),
    # times
    ("time,prey\n0,1\n.,2\n", {}, "the time column 'time' is empty in line 3"),
    (
        "time,prey\n0,1\n1,2\n",
        {"time_unit": "days"},
        "time_unit counts dates, but column 'time' holds '0' in line 2 of",
    ),
    ("time,prey\n2020-01-01,1\nx,2\n", {"time_unit": "days"}, "column 'time' must hold dates, but holds 'x' in line 3"),
    (
        "time,prey\n31.1.2020,1\n",
        {"time_unit": "days"},
        "holds '31.1.2020' in line 2 of data.csv: write dates as 2020-01-31",
    ),
    ("time;prey\n31.1.2020;1,5\n", {}, "holds '31.1.2020' in line 2 of data.csv: write dates as 2020-01-31, and count"),
    ("time,prey\n2020-01-01T00:00Z,1\n2020-01-02,2\n", {"time_unit": "days"}, "dates with a time zone, in line 2 of"),
    (
        "time,prey\n0,1\n1,2\n",
        {"time_unit": "months"},
        "time_unit must be one of 'seconds', 'minutes', 'hours', 'days',",
    ),
    # long form
    ("time,what,value\n0,prey,1\n1,,2\n", PAIR, "the name column 'what' is empty in line 3"),
    ("time,what,value\n0,prey,1\n1,prey,x\n", PAIR, "column 'value' must hold numbers, but holds 'x' in line 3"),
    (
        "time,what,value\n0,prey,1\n1,prry,2\n",
        PAIR,
        "data.csv names 'prry', which is none of the states prey, predator: Did",
    ),
    ("time,prey\n0,1\n1,2\n", PAIR, "data.csv has no name column 'what'"),
    (
        "time,what,value\n0,prey,1\n1,prey,2\n",
        {**PAIR, "sigma": {"prey": "sd"}},
        "with long, sigma must name one column",
    ),
    (
        "time,what,value\n0,a,1\n1,a,2\n",
        {**PAIR, "observe": {"aa": "prey"}},
        "data.csv has no measurements of 'aa'. Did you mean 'a'? It",
    ),
    ("time,what,value\n0,prey,\n1,prey,\n", PAIR, "column 'prey' of data.csv holds no values"),
    (
        "time,prey\n0,1\n1,2\n",
        {"long": "prey"},
        "long must name two columns, long=('name column', 'value column'), got 'prey'",
    ),
    (
        "time,what,value,sd\n0,prey,1,1\n1,prey,2,0\n",
        {**PAIR, "sigma": "sd"},
        "for each value of 'value', but holds 0 in line",
    ),
    # conditions
    (
        SERIES,
        {"conditions": {"a": {}}},
        "conditions are told apart by trajectory: name the column that does so, trajectory=",
    ),
    (
        SERIES,
        {**RUN, "conditions": {"a": {"k": 1}}},
        "the dict of conditions has no row for trajectory 'b' of the data: col",
    ),
    (SERIES, {**RUN, "conditions": {"a": {"k": 1j}, "b": {}}}, "column 'k' must hold numbers, but holds '1j' in row 0"),
    (SERIES, {**RUN, "conditions": {}}, "the dict of conditions holds no rows"),
    (
        SERIES,
        {**RUN, "conditions": pl.DataFrame({"run": ["a", "b", "a"]})},
        "the DataFrame of conditions has two rows for trajectory 'a', in row 0 and row 2: leave one out",
    ),
    (
        SERIES,
        {**RUN, "conditions": pd.DataFrame([["a", 1, 2], ["b", 3, 4]], columns=["run", "k", "k"])},
        "the DataFrame of conditions has 2 columns called 'k': rename all but one",
    ),
    (
        "run,time,prey,arm\na,0,1,low\na,1,2,low\n",
        {**RUN, "conditions": {"a": {"arm": "high"}}},
        "'arm' of trajectory 'a' is 'high' in conditions, but 'low' in data.csv",
    ),
    # files
    ("time\tprey\n0\t1,5\n1\t1.5\n", {}, "data.csv has decimal commas, so column 'prey' must not hold '1.5' in line 3"),
    ('time,prey\n0,"1\n', {}, "data.csv is not a CSV file: unexpected end of data in line 2"),
    ("time,prey\n0,1\n1,\0\n", {}, "data.csv is not a CSV file: it holds null characters, which text does not"),
]


@pytest.mark.parametrize(("text", "options", "words"), BAD)
def test_bad_tables_are_refused(csv, text, options, words):
    with refused(ValueError, words):
        read_data(csv(text), STATES, **options)


def test_bad_dicts_and_frames_are_refused():
    for source, words in [
        (
            {"time": [0, 1], "prey": [1, 2, 3]},
            "the columns of the dict must have one length, but have 'time' 2, 'prey' 3",
        ),
        (
            {"time": [0, 1], "prey": np.ones((2, 1))},
            "column 'prey' must hold one cell for each row, [n], got shape (2, 1)",
        ),
        ({"time": [0, 1], "prey": 3.0}, "column 'prey' must hold one cell for each row, [n], got shape ()"),
        ({"time": [], "prey": []}, "the dict holds no rows"),
        ({}, "the dict holds no rows"),
        (pl.DataFrame({"time": [0, 1], "prey": ["1", "x"]}), "column 'prey' must hold numbers, but holds 'x' in row 1"),
        (pl.DataFrame({"time": [0, 1], "prey": [1.0, np.inf]}), "must hold numbers, but holds 'inf' in row 1"),
    ]:
        with refused(DataError, words):
            read_data(source, STATES)
    with refused(TypeError, "or a dict of columns, got LazyFrame: collect it first"):
        read_data(pl.LazyFrame(COLUMNS), STATES)
    with refused(TypeError, "conditions must be the path of a table, a DataFrame or a dict of columns, got int"):
        read_data({"time": [0, 1], "prey": [1, 2], "run": [1, 1]}, STATES, trajectory="run", conditions=3)


def test_other_formats_are_refused(tmp_path):
    for name, words in {
        "a.xls": "is a .xls workbook, which is not read: save it as .xlsx or as CSV",
        "a.xlsx": "is not an Excel workbook: File is not a zip file",
    }.items():
        (tmp_path / name).write_text("time,prey\n")
        with refused(DataError, words):
            read_data(tmp_path / name, STATES)
    (tmp_path / "a.csv").write_bytes(b"time,prey\n0,\x81\n")
    with refused(DataError, "save it as UTF-8"):
        read_data(tmp_path / "a.csv", STATES)


@pytest.mark.parametrize(
    ("modules", "source", "words"),
    [
        (
            ["narwhals.stable.v1"],
            pl.DataFrame(COLUMNS),
            "reading a DataFrame needs narwhals: pip install 'torchivp[fit]'",
        ),
        (["openpyxl"], "a.xlsx", "reading Excel workbooks needs openpyxl: pip install 'torchivp[tables]'"),
        (["pyarrow", "polars"], "a.parquet", "reading Parquet files needs polars: pip install 'torchivp[tables]'"),
    ],
)
def test_packages_that_are_missing_are_named(tmp_path, monkeypatch, modules, source, words):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    if isinstance(source, str):
        source = tmp_path / source
        source.write_text("")
    with refused(ImportError, words):
        read_data(source, STATES)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("time,amount\n0,\n", {}, "the amount column 'amount' is empty in line 2 of data.csv"),
        ("time,amount\n,1\n", {}, "the time column 'time' is empty in line 2"),
        ("time,mg\n0,1\n", {}, "data.csv has no amount column 'amount'. Its columns are time, mg"),
        ("time,amount\n0,x\n", {}, "column 'amount' must hold numbers, but holds 'x' in line 2"),
        (
            "time,amount\n2020-01-01,1\n",
            {},
            "in line 2 of data.csv: count from the first date, as time_unit='days' does for the data",
        ),
        (
            "time,amount,s\n0,1,pray\n",
            {"state": "s"},
            "the state column 's' names 'pray' in line 2 of data.csv. Did you",
        ),
        ("time,amount,run\n0,1,c\n", {"trajectory": "run"}, "names 'c' in line 2 of data.csv. There are a, b"),
        ("time,amount,duration\n0,1,-1\n", {}, "holds -1 in line 2 of data.csv: a duration is positive, or 0 for"),
        ("time,amount,rate,duration\n0,1,2,1\n", {}, "data.csv has both a duration and a rate in line 2"),
        ("time,amount,rate\n0,-1,2\n", {}, "has the rate 2 in line 2 of data.csv, and the amount -1 is never given"),
        ("time,amount\n0,1\n", {"duration": "hours"}, "data.csv has no duration column 'hours'"),
        ("time,amount,run\n0,1,\n", {"trajectory": "run"}, "the trajectory column 'run' is empty in line 2"),
    ],
)
def test_bad_doses_are_refused(csv, text, options, words):
    with refused(DataError, words):
        read_doses(csv(text), ["a", "b"], STATES, **options)


def test_a_trajectory_dataset_takes_no_censored_values(csv):
    with refused(
        DataError, "a TrajectoryDataset holds no censored values: 1 cell of column 'prey', such as '<1' in line"
    ):
        TrajectoryDataset.from_table(csv("time,prey\n0,<1\n1,2\n"), ["prey"])
