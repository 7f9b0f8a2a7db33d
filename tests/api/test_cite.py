"""What `cite` prints is BibTeX, of the methods that were used and of no others."""

import importlib
import inspect
import io
import pickle
import re
import unicodedata
from pathlib import Path

import pytest
import torch
from pybtex.database import parse_string
from pybtex.richtext import Text

import torchivp
from torchivp import ODE_METHODS, SDE_METHODS, Backsolve, Event, PIController, PIDController, Scheduled, cite, fit
from torchivp import solve_ivp as solve
from torchivp.methods.ode.runge_kutta import ExplicitRungeKutta
from torchivp.methods.ode.tableau import ButcherTableau
from torchivp.references import entries

ROOT = Path(__file__).resolve().parents[2]
METHODS = {f"ode-{name}": method for name, method in ODE_METHODS.items()} | {
    f"sde-{name}": method for name, method in SDE_METHODS.items()
}
NEEDED = {
    "article": {"title", "journal", "volume", "year"},
    "book": {"title", "publisher", "year"},
    "inproceedings": {"title", "booktitle", "year"},
    "techreport": {"title", "institution", "year"},
    "misc": {"title", "note"},
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)

SCIPY_OWN = (
    "scipy 1.0: fundamental algorithms for scientific computing in python",
    "automatic selection of methods for solving stiff and nonstiff systems of ordinary differential equations",
)
y0 = torch.ones(2, dtype=torch.float64)


def decay(t, y):
    return -y


def cited(*used) -> list[str]:
    """The keys of what `cite` prints but for torchivp's own, read by pybtex, which refuses repeated ones."""
    text = io.StringIO()
    cite(*used, file=text)
    first, *others = parse_string(text.getvalue(), "bibtex").entries
    assert first == "torchivp"
    return others


def plain(latex: str) -> str:
    """Text without accents, and without differences of spaces and of cases."""
    text = str(Text.from_latex(latex)).translate({ord("ø"): "o", ord("æ"): "ae", ord("ł"): "l", ord("ß"): "ss"})
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return " ".join(text.split()).lower()


def test_every_entry_is_whole():
    found = parse_string("\n\n".join(entries().values()), "bibtex").entries
    assert list(found) == list(entries()) == sorted(entries(), key=str.lower)
    for key, entry in found.items():
        assert NEEDED[entry.type] <= {field for field, value in entry.fields.items() if value}, key
        surname = plain("".join(entry.persons["author"][0].last_names)).replace("-", "")
        assert plain(key).startswith(surname.removeprefix("ter braak") or "terbraak"), key
        assert key.endswith(entry.fields["year"]), key


def test_every_entry_is_cited_somewhere():
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(torchivp.__file__).parent.rglob("*.py"))
    assert not [key for key in entries() if f'"{key}"' not in sources]


@each_method
def test_every_method_has_sources_and_its_description_names_the_same(method):
    described = plain(inspect.getdoc(method))
    titles = []
    for key in method.references:
        entry = parse_string(entries()[key], "bibtex").entries[key]
        assert plain(entry.persons["author"][0].last_names[0]) in described
        titles.append(plain(entry.fields["title"]))
    assert titles
    for title in re.findall(r'"([^"]{20,})"', described.replace('"predict, evaluate, correct"', "")):
        source = SCIPY_OWN if method is ODE_METHODS["scipy_solver"] else titles
        assert any(full.startswith(title) for full in source), title


@each_method
def test_every_method_can_be_cited(method):
    assert set(method.references) <= set(cited(method))


def test_a_solution_is_cited_by_what_it_was_computed_with():
    always = "HairerNorsettWanner1993"  # the sizes of steps
    assert cited(solve(decay, (0, 1), y0)) == ["HairerWanner1996", "Tsitouras2011", always]  # and no stiff method
    assert cited(solve(decay, (0, 1), y0, method="dopri5")) == ["DormandPrince1980", "Shampine1986", always]
    assert cited(solve(decay, (0, 1), y0, method="tsit5")) == ["Tsitouras2011", always]
    assert cited(solve(decay, (0, 1), y0, method="rk4", step_size=0.1)) == ["Kutta1901"]
    smooth = solve(decay, (0, 1), y0, method="tsit5", controller=PIController())
    assert cited(smooth) == ["Tsitouras2011", always, "Gustafsson1991"]
    smoother = solve(decay, (0, 1), y0, method="tsit5", controller=PIDController(kp=0.1, ki=0.3, kd=0.1))
    assert cited(smoother) == ["Tsitouras2011", always, "Soderlind2003"]
    sparse = solve(decay, (0, 1), y0, method="rodas5p", jac_sparsity=torch.eye(2))
    assert cited(sparse) == ["Steinebach2023", always, "CurtisPowellReid1974"]
    algebraic = solve(lambda t, y: torch.stack((-y[0], y[0] - y[1])), (0, 1), y0, mass=torch.tensor([[1.0, 0], [0, 0]]),
                      method="rodas5p")  # fmt: skip
    assert cited(algebraic) == ["Steinebach2023", always, "HairerWanner1996"]


def test_its_gradient_counts_if_there_is_one():
    moving = y0.clone().requires_grad_()
    kutta = {"method": "rk4", "step_size": 0.1}
    adjoint = ["Pontryagin1962", "Chen2018"]
    assert cited(solve(decay, (0, 1), y0, gradient="backsolve", **kutta)) == ["Kutta1901"]
    assert cited(solve(decay, (0, 1), moving, gradient="backsolve", **kutta)) == ["Kutta1901", *adjoint]
    own = Backsolve(seminorm=True, method="tsit5", controller=PIDController())
    found = solve(decay, (0, 1), moving, gradient=own, **kutta)
    assert cited(found) == ["Kutta1901", *adjoint, "KidgerChenLyons2021", "Tsitouras2011"]
    assert cited(solve(decay, (0, 1), moving, gradient="checkpointed", **kutta)) == ["Kutta1901"]
    assert cited(solve(decay, (0, 1), moving, gradient="forward", **kutta))[1:] == ["HairerNorsettWanner1993"]


def test_events_count_if_they_are_to_be_found():
    half = Event(lambda t, y: y[0] - 0.5)
    kutta = {"method": "rk4", "step_size": 0.1}
    assert cited(solve(decay, (0, 1), y0, events=half, **kutta)) == ["Kutta1901", "OliveiraTakahashi2021"]
    moving = y0.clone().requires_grad_()
    assert cited(solve(decay, (0, 1), moving, events=[half], **kutta))[2:] == ["ChenAmosNickel2021"]
    doses = Scheduled([0.5], lambda t, y: y + 1)
    assert cited(solve(decay, (0, 1), y0, events=doses, **kutta)) == ["Kutta1901"]


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_of_auto_those_methods_count_that_took_steps(batch_dims):
    start, auto = y0[:, None], ["HairerWanner1996", "Tsitouras2011"]
    easy = solve(decay, (0, 1), start, method="auto", batch_dims=batch_dims)
    assert cited(easy)[:2] == auto and "Steinebach2023" not in cited(easy)
    stiff = solve(lambda t, y: -1e5 * (y - torch.cos(t)), (0, 1), start, method="auto", batch_dims=batch_dims)
    assert cited(stiff)[:3] == [*auto, "Steinebach2023"]


def test_of_scipy_the_solver_counts():
    scipy = ODE_METHODS["scipy_solver"]
    assert cited(solve(decay, (0, 1), y0, method=scipy.with_options(solver="DOP853")))[0] == "Virtanen2020"
    known = ("LSODA", "Radau", "BDF", "RK23", "RK45", "DOP853")
    assert len({tuple(cited(scipy.with_options(solver=name))) for name in known}) == len(known)


def test_fused_solves_are_cited_alike():
    eager, auto = (solve(decay, (0, 1), y0, backend=backend) for backend in ("eager", "auto"))
    assert eager.sources == auto.sources


def test_solutions_keep_their_sources_when_they_travel():
    solution = solve(decay, (0, 1), y0, method=ODE_METHODS["radau5"].with_options(max_iters=9))
    assert pickle.loads(pickle.dumps(solution)).sources == solution.sources != {}


def test_steady_states():
    assert cited(torchivp.steady_state(lambda t, y: 1 - y, y0)) == ["KelleyKeyes1998"]
    followed = torchivp.steady_state(lambda t, y: 1 - y, 2 * y0, follow=True)
    assert cited(followed) == ["KelleyKeyes1998", "Steinebach2023"]


def test_fits_and_what_they_make():
    t = torch.linspace(0, 2, 12, dtype=torch.float64)
    wiggle = 1 + 0.05 * torch.sin(20 * t)
    model = torchivp.models.Equations("x' = -rate*x")
    data = {"time": t, "x": 3 * torch.exp(-0.7 * t) * wiggle}
    result = fit(model, data, time="time", starts=1, noise="student_t")
    keys = cited(result)
    assert {"BranchColemanLi1999", "Virtanen2020", "HairerNorsettWanner1993", "LangeLittleTaylor1989"} <= set(keys)
    assert not {"Tobin1958", "KalmanBucy1961", "Wolfinger1993", "Lawless1987"} & set(keys)
    assert cited(result.profile("rate")) == ["Raue2009"]
    assert cited(result, result.bootstrap(2, seed=1)) == [*keys, "DavisonHinkley1997"]


def test_names(capsys):
    assert cited("RK45") == cited("dopri5") == cited(ODE_METHODS["dopri5"]) == ["DormandPrince1980", "Shampine1986"]
    assert cited("srk", "sra1") == ["Rossler2010"]
    assert cited("backsolve") == ["Pontryagin1962", "Chen2018"]
    assert cited("direct") == cited() == []
    cite("tsit5")
    out = capsys.readouterr().out
    assert out.startswith(
        f"% torchivp {torchivp.__version__}, and what it was used with:\n% method Tsit5: Tsitouras2011\n"
    )


class Tableau(ExplicitRungeKutta):
    """A method of the user's."""

    tableau = ButcherTableau(order=1, c=(0,), a=((),), b=(1,))


class Published(Tableau):
    """One with a source."""

    references = ("@misc{Mine2026, author = {Me}, title = {Mine}, note = {Unpublished}}",)


class Misspelt(Tableau):
    """One whose source does not exist."""

    references = ("DormandPrince1979",)


def test_methods_of_ones_own(capsys):
    cite(solve(decay, (0, 1), y0, method=Tableau, step_size=0.1))
    assert "% method Tableau: names no source\n" in capsys.readouterr().out
    assert cited(solve(decay, (0, 1), y0, method=Published, step_size=0.1)) == ["Mine2026"]
    with pytest.raises(ValueError, match=r"method Misspelt names 'DormandPrince1979' as a source, which is no key"):
        cite(Misspelt)


def test_what_cannot_be_cited():
    with pytest.raises(ValueError, match=r"unknown method 'tsit6'. Did you mean 'tsit5'\?"):
        cite("tsit6")
    with pytest.raises(
        ValueError, match=r"'heun' is a method for ODEs, and one for SDEs: write cite\(torchivp.ODE_MET"
    ):
        cite("heun")
    assert cited(SDE_METHODS["heun"]) == ["Rumelin1982"] != cited(ODE_METHODS["heun"])
    with pytest.raises(TypeError, match=r"got Tensor: odeint and sdeint return tensors, .* cite\('dopri5'\)"):
        cite(torchivp.odeint(decay, y0, torch.tensor([0.0, 1.0])))


def test_the_citation_file_and_the_changelog_are_of_this_version(capsys):
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    (version,) = re.findall(r"^version: (.+)$", citation, re.M)
    (title,) = re.findall(r'^title: "(.+)"$', citation, re.M)
    (author,) = re.findall(r'^  - name: "(.+)"$', citation, re.M)
    assert version == torchivp.__version__
    cite()
    own = parse_string(capsys.readouterr().out, "bibtex").entries["torchivp"]
    assert plain(own.fields["title"]) == plain(title) and own.fields["note"] == f"Version {version}"
    assert plain(str(own.persons["author"][0])) == plain(author)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[(.+?)\] - (?:unreleased|\d{4}-\d{2}-\d{2})$", changelog, re.M)[1] == version


def test_the_documentation_lists_every_source(monkeypatch):
    pytest.importorskip("mkdocs", reason="mkdocs is installed by `make docs`")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    hooks = importlib.import_module("hooks")
    page = (ROOT / "docs" / "citing.md").read_text(encoding="utf-8")
    shown = hooks.on_page_markdown(page, None, None, None)
    assert [key for key in entries() if f"\n- `{key}`: " in shown] == list(entries())
    assert "\n- `Kvaerno2004`: Anne Kværnø\\. Singly diagonally implicit Runge" in shown
