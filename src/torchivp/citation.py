"""What to cite: BibTeX entries of the sources of what was used."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TextIO

import torchivp
from torchivp.api.arguments import GRADIENTS, find_gradient
from torchivp.methods import ALIASES, ODE_METHODS, find_method
from torchivp.methods.method import Method
from torchivp.methods.sde import SDE_METHODS
from torchivp.methods.sde.method import SDEMethod
from torchivp.references import Sources, entries

_SOFTWARE = """@misc{{torchivp,
  author = {{{{The torchivp authors}}}},
  title = {{{{torchivp}}: differential equations in {{PyTorch}}}},
  note = {{Version {version}}}
}}"""


def cite(*used: Any, file: TextIO | None = None) -> None:
    """Print what to cite, as BibTeX: torchivp, and the sources of the methods used, each once.

    A comment at the top says which source belongs to what.

    Args:
        used: results of `solve_ivp`, `steady_state` or `fit` and what these make (`Profile`, `Bootstrap`, `Posterior`);
            names or classes of methods, names of gradients, or objects with their options. Of a solution those methods
            count that took its steps, and its gradient if it has one.
        file: a text file to print to. Default: standard output.

    Raises:
        TypeError: one of them is nothing of that kind.
        ValueError: a name is unknown, or one of a method for ODEs and of another for SDEs; or a method names a source
            that is neither a key of torchivp's `references.bib` nor a BibTeX entry.

    Examples:
        >>> import torch, torchivp
        >>> solution = torchivp.solve_ivp(lambda t, y: -y, (0.0, 1.0), torch.ones(2), method="tsit5")
        >>> torchivp.cite(solution)  # doctest: +ELLIPSIS
        % torchivp 0.1.0, and what it was used with:
        % method Tsit5: Tsitouras2011
        % step sizes: HairerNorsettWanner1993
        ...
    """
    sources: Sources = {}
    for each in used:
        sources |= _sources(each)
    known, found, lines = entries(), {}, []
    for part, references in sources.items():
        keys = []
        for reference in references:
            key, entry = _entry(reference, part, known)
            keys.append(key)
            found[key] = entry
        lines.append(f"% {part}: {', '.join(keys) or 'names no source'}")
    head = f"% torchivp {torchivp.__version__}" + (", and what it was used with:" if lines else "")
    software = _SOFTWARE.format(version=torchivp.__version__)
    print("\n".join([head, *lines]), software, *found.values(), sep="\n\n", file=sys.stdout if file is None else file)


def _entry(reference: str, part: str, known: Mapping[str, str]) -> tuple[str, str]:
    """The key and the BibTeX entry of a source, which is either of them."""
    if reference in known:
        return reference, known[reference]
    entry = reference.strip()
    start, end = entry.find("{"), entry.find(",")
    if not entry.startswith("@") or not 0 < start < end:
        raise ValueError(
            f"{part} names {reference!r} as a source, which is no key of torchivp's references.bib: write the BibTeX "
            'entry itself, references = ("@article{Key, ...}",)'
        )
    return entry[start + 1 : end].strip(), entry


def _sources(used: Any) -> Sources:
    """What something was computed with, or computes with."""
    if isinstance(used, str):
        return _named(used)
    if isinstance(used, type) and issubclass(used, Method | SDEMethod):
        return used.cited()
    if isinstance(used, tuple(GRADIENTS.values())):
        return used.cited()
    sources = getattr(used, "sources", None)
    if not isinstance(sources, dict):
        raise TypeError(
            "cite takes a solution, the result of a fit, or the name or class of a method, got "
            f"{type(used).__name__}: odeint and sdeint return tensors, of which the method must be named, as in "
            "cite('dopri5')"
        )
    return sources


def _named(name: str) -> Sources:
    """What the method or gradient of that name computes with."""
    if name in GRADIENTS:
        return find_gradient(name).cited()
    if name not in SDE_METHODS:
        return find_method(name).cited()
    if name in ODE_METHODS or name in ALIASES:
        raise ValueError(
            f"{name!r} is a method for ODEs, and one for SDEs: write cite(torchivp.ODE_METHODS[{name!r}]) or "
            f"cite(torchivp.SDE_METHODS[{name!r}])"
        )
    return SDE_METHODS[name].cited()
