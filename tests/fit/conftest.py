"""Fits are checked as always, but for short inputs less closely where they are not what a test is about."""

import pytest

from torchivp.fitting.searching import trust

CLOSELY = {"test_trust", "test_published"}
"""The modules whose fits are as any user's."""


@pytest.fixture(autouse=True)
def fewer_looks(request, monkeypatch):
    if request.module.__name__.rpartition(".")[2] not in CLOSELY:
        monkeypatch.setattr(trust, "_LOOKS", 200)
