"""How a fit tells of its progress, and how long the rest may take."""

import re

import pytest

from torchivp import fit
from torchivp.fitting.progress import Reporter, duration, tell_part
from torchivp.models import Equations

DATA = {"time": [0.0, 1.0, 2.0, 3.0], "y": [2.0, 1.1, 0.5, 0.3]}
OPTIONS = {"starts": 3, "rtol": 1e-4, "atol": 1e-4, "method": "dopri5", "backend": "eager"}


def decay():
    return Equations("y' = -k*y\nk = 1\ny(0) = 1")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Heard:
    """What a reporter says, and when."""

    def __init__(self):
        self.clock, self.said = Clock(), []
        self.reporter = Reporter(lambda stage, words, parts: self.said.append((words, parts)), self.clock)


def test_nobody_knows_how_long_a_search_takes():
    heard = Heard()
    heard.clock.now = 100.0
    heard.reporter("maximum likelihood", 7, 12.5)
    assert heard.said == [("maximum likelihood: iteration 7, nll 12.5", None)]


def test_the_rest_takes_as_long_as_the_parts_that_are_done():
    heard = Heard()
    heard.clock.now = 50.0
    heard.reporter.part("bootstrap", 0, 10)
    for i in range(10):
        heard.clock.now += 6.0
        heard.reporter("bootstrap", i + 1, 100.0 + i)
        heard.reporter.part("bootstrap", i + 1, 10)
    parts = heard.said[2::2]
    assert heard.said[0] == ("bootstrap: 0 of 10 done", (0, 10))
    assert parts[0] == ("bootstrap: 1 of 10 done, about 54 s left, nll 100", (1, 10))
    assert parts[3] == ("bootstrap: 4 of 10 done, about 36 s left, nll 103", (4, 10))
    assert parts[-1] == ("bootstrap: 10 of 10 done, nll 109", (10, 10))
    heard.reporter("something else", 1, 3.0)
    assert heard.said[-1] == ("something else: iteration 1, nll 3", None)


def test_profiles_name_the_one_under_way():
    heard = Heard()
    heard.reporter.part("profiles", 0, 2)
    heard.reporter("profile of k", 1, 5.0)
    heard.clock.now = 600.0
    heard.reporter.part("profiles", 1, 2)
    assert [words for words, _ in heard.said[1:]] == [
        "profiles: 0 of 2 done, profile of k, nll 5",
        "profiles: 1 of 2 done, about 10 min left, profile of k, nll 5",
    ]


def test_starts_compete_and_their_end_is_not_guessed():
    heard = Heard()
    heard.reporter.part("starts", 0, 3)
    for number, nll in ((1, 9.0), (2, 4.0), (3, 30.0)):
        heard.reporter(f"start {number} of 3, all data", 1, nll)
    heard.clock.now = 60.0
    heard.reporter.part("starts", 1, 3)
    assert heard.said[-1] == ("starts: 1 of 3 done, 3 iterations, best nll 4", (1, 3))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (42.0, "42 s"), (99.4, "100 s"), (100.0, "2 min"), (3600.0, "60 min"), (9000.0, "2 h 30 min")],
)
def test_time_spans(seconds, words):
    assert duration(seconds) == words


def test_plain_functions_hear_of_iterations_alone():
    told = []
    tell_part(lambda *news: told.append(news), "starts", 0, 3)
    assert told == []


class Listener:
    def __init__(self):
        self.parts, self.stages = [], set()

    def __call__(self, stage, iteration, nll):
        self.stages.add(stage)

    def part(self, stage, done, total):
        self.parts.append((stage, done, total))


@pytest.fixture(scope="module")
def several_starts():
    heard = Listener()
    return fit(decay(), DATA, progress=heard, **OPTIONS), heard


def test_starts_are_counted(several_starts):
    assert several_starts[1].parts == [("starts", done, 3) for done in range(4)]


def test_sets_of_data_are_counted(several_starts):
    heard = Listener()
    plain = several_starts[0].bootstrap(2)
    assert (several_starts[0].bootstrap(2, progress=heard).estimates == plain.estimates).all()
    assert heard.parts == [("bootstrap", done, 2) for done in range(3)] and heard.stages == {"bootstrap"}


def test_profiles_are_counted(several_starts):
    heard = Listener()
    found = several_starts[0].profiles(["k"], progress=heard)
    assert heard.parts == [("profiles", 0, 1), ("profiles", 1, 1)] and heard.stages == {"profile of k"}
    assert (found["k"].nll == several_starts[0].profile("k").nll).all()


def test_many_starts_do_not_flood_a_file(capfd):
    fit(decay(), DATA, progress=True, **OPTIONS)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("start")]
    assert all(re.match(r"starts: \d of 3 done", line) for line in lines)
    assert lines[0].startswith("starts: 0 of 3 done") and lines[-1].startswith("starts: 3 of 3 done")
