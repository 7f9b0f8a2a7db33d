"""The table of methods in the documentation says what the methods declare."""

from pathlib import Path

import torchivp
from torchivp.sde.base import NOISE_TYPES

PAGE = Path(__file__).parents[2] / "docs" / "sde.md"
COLUMNS = ["diagonal", "scalar", "additive", "commutative", "general"]
CALCULI = {"Itô": "ito", "Stratonovich": "stratonovich"}
AREAS = {"": "none", "H": "space-time", "A": "foster"}


def documented():
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 9 or cells[0].strip("`") not in torchivp.SDE_METHODS:
            continue
        area, _, only = cells[7].partition(" for ")
        for calculus in cells[1].split(", "):
            for noise, orders in zip(COLUMNS, cells[2:7], strict=True):
                if orders != "–":
                    strong, weak = map(float, orders.split(", "))
                    needed = AREAS[area if not only or noise in only.split(", ") else ""]
                    yield torchivp.Capability(cells[0].strip("`"), CALCULI[calculus], noise, strong, weak, needed)


def test_the_table():
    assert set(COLUMNS) == set(NOISE_TYPES)
    assert sorted(documented()) == sorted(torchivp.sde_methods())
