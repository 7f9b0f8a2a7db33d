"""The program that checks and times kernels on a GPU works: it may be run there but once."""

import json
import sys
from pathlib import Path

import pytest
import torch

from fused.emulated import emulated, needs_emulation

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import gpu

    return gpu


def sections(program, *names):
    found = []
    with emulated():
        assert program.run_sections(names, program.Session(torch.device("cpu"), True, found.append))
    assert [x["section"] for x in found if x["kind"] == "done"] == list(names)
    return found


@needs_emulation
@pytest.mark.parametrize(
    "name",
    [
        "records",
        "failures",
        "refusals",
        "threads",
        *(pytest.param(name, marks=pytest.mark.sweep) for name in ("values", "rows", "single", "eager")),
        *(pytest.param(name, marks=pytest.mark.sweep) for name in ("lotka", "robertson", "networks")),
    ],
)
def test_a_section_finds_all_well(name, program, capsys):
    found = sections(program, name)
    kinds = {x["kind"] for x in found}
    assert kinds & {"check", "time"}
    assert all(x["ok"] for x in found if x["kind"] == "check")
    assert program.report(found, {}, None) == 0
    assert "failed: nothing" in capsys.readouterr().out


def test_numbers_that_are_not_the_same_are_found(program):
    found = []
    session = program.Session(torch.device("cpu"), True, found.append)
    one = torch.tensor([1.0, 2.0])
    session.same("same", one, one.double(), 1e-12)
    session.same("other", one + torch.tensor([0.0, 1e-3]), one, 1e-4)
    session.same("shape", one, one[:1], 1.0)
    session.same("hole", torch.tensor([1.0, torch.nan]), one, 10.0)
    assert [x["ok"] for x in found] == [True, False, False, False]
    assert "differs by 5.0e-04, at most 1e-04" in found[1]["detail"]


def test_what_fails_is_named_and_stops_nothing(program, monkeypatch, tmp_path, capsys):
    def breaks(session):
        raise ArithmeticError("no such luck")

    monkeypatch.setattr(program, "SECTIONS", {"bad": breaks, "good": lambda session: session.check("fine", True)})
    found = []
    assert program.run_sections(["bad", "good"], program.Session(torch.device("cpu"), True, found.append))
    assert program.report(found, {"gpu": "none"}, tmp_path) == 1
    said = capsys.readouterr()
    assert "1 of 1 checks passed; failed: section bad (ArithmeticError: no such luck)" in said.out
    assert "Traceback" in said.err
    assert json.loads((tmp_path / "gpu.json").read_text())["failed"] == ["section bad (ArithmeticError: no such luck)"]


CHILD = """
import json, os, sys, time
path, names, how = sys.argv[1:]
for name in names.split(","):
    with open(path, "a") as file:
        file.write(json.dumps({"kind": "begun", "section": name}) + "\\n")
    if name == "spoils": os._exit(9)
    if name == "hangs": time.sleep(60)
    with open(path, "a") as file:
        file.write(json.dumps({"kind": "done", "section": name, "seconds": 0.0}) + "\\n")
    if name == "last of use": sys.exit(3)
"""


def test_another_process_goes_on_where_one_has_ended(program, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(program, "_PATIENCE", 1.5)
    file, started = tmp_path / "found", []

    def command(left):
        started.append(list(left))
        return [sys.executable, "-c", CHILD, str(file), ",".join(left), ""]

    program.supervise(["first", "spoils", "last of use", "hangs", "end"], command, file, 60.0)
    found = program.lines_in(file)
    assert [x["section"] for x in found if x["kind"] == "done"] == ["first", "last of use", "end"]
    assert {x["section"]: x["why"] for x in found if x["kind"] == "failed"} == {
        "spoils": "its process ended with status 9",
        "hangs": "nothing was heard of it for 1.5 s",
    }
    assert [names[0] for names in started] == ["first", "last of use", "hangs", "end"]
    program.supervise(["late"], command, file, 0.0)
    assert program.lines_in(file)[-1] == {"kind": "failed", "section": "late", "why": "no time was left for it"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(program, capsys):
    assert program.main(["--quick"]) == 2
    assert "needs an NVIDIA GPU, and torch sees none" in capsys.readouterr().out
