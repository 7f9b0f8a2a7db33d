"""The benchmarks' own programs."""

from pathlib import Path

import pytest

pytest.importorskip("torchdiffeq")
pytest.importorskip("torchsde")


def test_a_page_says_when_and_on_what_its_numbers_were_measured(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)
    from benchmarks.cases import Scaling
    from benchmarks.harness import Timing
    from benchmarks.report import Results, write_page

    memory = Scaling([10, 100], {"direct": [2048, 20480], "checkpointed": [1024, 4096]})
    noise = Timing([1.0, 1.0, 1.0], [1.0, 1.1, 0.9])
    monkeypatch.setattr("os.getloadavg", lambda: (1e3, 1e3, 1e3))
    write_page(Results([], [], [], memory, noise, 1e-12, 3), tmp_path / "page.md", "memory and")
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("# Benchmarks\n") and "python -m benchmarks --only 'memory and' --repeats 3 --page" in page
    assert "| date | 20" in page and "cores; " in page and "torchdiffeq 0." in page and "| 1000.0 |" in page
    assert "The machine had more to do than this." in page
    assert "| direct | 2 | 20 |" in page and "| checkpointed | 1 | 4 |" in page
    assert "a ratio of 1.00, from 0.90 to 1.10" in page
