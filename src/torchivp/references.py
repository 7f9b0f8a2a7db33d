"""The sources of what torchivp computes with: BibTeX entries, by the keys that methods name.

A *source* is a key of `references.bib`. What a result was computed with is a dict from each part, in words, to its
sources: `{"method Tsit5": ("Tsitouras2011",), ...}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TypeAlias

Sources: TypeAlias = dict[str, tuple[str, ...]]


@cache
def entries() -> Mapping[str, str]:
    """Every entry of `references.bib`, as BibTeX, by its key."""
    text = files("torchivp").joinpath("references.bib").read_text(encoding="utf-8")
    found = [f"@{entry.strip()}" for entry in text.split("\n@")[1:]]
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in found}
