"""What `make package` has built installs where nothing but its dependencies is, works there, and says what is missing.

The environment has torch, NumPy, SciPy and what these need, as links to the installed ones: installing them anew would
take minutes and tell nothing more. pip looks at no index, so that it fails if the package needs anything else.
"""

import json
import math
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email.parser import Parser
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

from programs import run_program
from torchivp import __version__

pytestmark = pytest.mark.package
ROOT = Path(__file__).resolve().parent.parent
CORE = ("torch", "numpy", "scipy")
NAME = re.compile(r"[\w.-]+")

WITHOUT_EXTRAS = {
    "torchivp.plot": (
        "import torchivp.plot",
        "torchivp.plot draws with matplotlib, which is missing: pip install 'torchivp[fit]'",
    ),
    "tables": (
        "result.to_frame()",
        "showing results as tables needs pandas: pip install 'torchivp[fit]'",
    ),
    "report": (
        "result.report('report')",
        "torchivp.plot draws with matplotlib, which is missing: pip install 'torchivp[fit]'",
    ),
    "samples": (
        "result.sample()",
        "sample() needs emcee, which is missing: pip install 'torchivp[bayes]'",
    ),
    "workbooks": (
        "read_data('table.xlsx', ['x'])",
        "reading Excel workbooks needs openpyxl: pip install 'torchivp[tables]'",
    ),
    "progress": (
        "from torchivp.training.callbacks import ProgressBar; ProgressBar(1)",
        "progress=True draws with rich, which is missing: pip install 'torchivp[train]'",
    ),
}
"""What needs an extra, and the sentence that says which."""

PROGRAM = """
import json, sys
import torch, torchivp
from torchivp import fit, solve_ivp
from torchivp.fitting import read_data
from torchivp.models import Equations

y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
solution = solve_ivp(lambda t, y: -y, (0, 1), y0)
(slope,) = torch.autograd.grad(solution.y[-1].sum(), y0)
stiff = solve_ivp(lambda t, y: -1000 * (y - torch.cos(t)), (0, 1), y0.detach(), method="bdf")
t = torch.linspace(0, 2, 9, dtype=torch.float64)
data = {"time": t, "x": 3 * torch.exp(-0.7 * t)}
model = Equations("x' = -rate*x")
result = fit(model, data, time="time", starts=1)
open("table.xlsx", "wb").close()
answers = {
    "path": torchivp.__file__,
    "version": torchivp.__version__,
    "end": solution.y[-1].tolist(),
    "slope": slope.tolist(),
    "stiff": stiff.y[-1].tolist(),
    "rate": result["rate"].value,
    "modules": sorted(sys.modules),
}
for name, code in json.loads(sys.argv[1]).items():
    try:
        exec(code)
    except ImportError as error:
        answers[name] = str(error)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def wheel() -> Path:
    found = list((ROOT / "dist").glob("*.whl"))
    assert len(found) == 1, f"there must be one wheel in {ROOT / 'dist'}: run `make package`"
    return found[0]


@pytest.fixture(scope="module")
def sdist() -> Path:
    found = list((ROOT / "dist").glob("*.tar.gz"))
    assert len(found) == 1, f"there must be one sdist in {ROOT / 'dist'}: run `make package`"
    return found[0]


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """The bin folder of an environment with the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in with_what_they_need(CORE):
        for entry in top_levels(name):
            (packages / entry.name).symlink_to(entry)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    done = run_program([*pip, "install", "--no-index", "--no-cache-dir", str(wheel)])
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "bin"


def with_what_they_need(names) -> set[str]:
    """The distributions and all that they depend on, as far as it is installed here (not what other systems need)."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        wanted = distribution(name).requires or []
        needed = [NAME.match(each)[0] for each in wanted if "extra ==" not in each]
        waiting += [each for each in needed if is_installed(each)]
    return found


def is_installed(name: str) -> bool:
    try:
        version(name)
    except ModuleNotFoundError:
        return False
    return True


def top_levels(name: str) -> set[Path]:
    """The files and folders of a distribution in site-packages."""
    installed = distribution(name)
    parts = {file.parts[0] for file in installed.files}
    return {Path(installed.locate_file(part)) for part in parts if part not in ("..", "__pycache__")}


@pytest.fixture(scope="module")
def answers(environment, tmp_path_factory) -> dict:
    """What the program printed in the environment."""
    folder = tmp_path_factory.mktemp("run")
    code = json.dumps({name: code for name, (code, _) in WITHOUT_EXTRAS.items()})
    done = run_program([environment / "python", "-I", "-c", PROGRAM, code], cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def tracked() -> dict[str, bytes]:
    """The files under src/ that git knows, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "src"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.removeprefix("src/"): (ROOT / name).read_bytes() for name in listed.stdout.split("\0") if name}


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    assert held == tracked()
    assert {"torchivp/py.typed", "torchivp/fused/source/solve.h"} <= held.keys()


def test_the_sdist_holds_what_is_tested_and_read(sdist):
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        "pyproject.toml",
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
        "constraints.txt",
        "Makefile",
        "CONTRIBUTING.md",
    }
    assert wanted | {"tests/test_package.py", "docs/index.md", "examples/data/lynx_hare.csv"} <= held


def test_the_lowest_torch_that_is_tested_is_the_lowest_that_is_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (allowed,) = [each.removeprefix("torch>=") for each in project["dependencies"] if each.startswith("torch")]
    pins = [(ROOT / name).read_text(encoding="utf-8") for name in ("constraints.txt", "constraints-lowest.txt")]
    newest, lowest = (re.findall(r"^torch==([\d.]+)$", text, re.M) for text in pins)
    assert lowest == [f"{allowed}.0"] and newest > lowest


def test_the_metadata_say_what_is_needed(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    core = [each for each in metadata.get_all("Requires-Dist") if "extra ==" not in each]
    assert [NAME.match(each)[0] for each in core] == ["numpy", "scipy", "torch"]
    assert {"fit", "tables", "train", "cli", "bayes", "all", "fused"} <= set(metadata.get_all("Provides-Extra"))


def test_it_solves_differentiates_and_fits_with_its_dependencies_alone(answers):
    assert Path(answers["path"]).parent.parent.name == "site-packages"
    assert answers["version"] == __version__
    assert answers["end"] == pytest.approx([math.exp(-1)] * 2, rel=1e-5)
    assert answers["slope"] == pytest.approx([math.exp(-1)] * 2, rel=1e-5)
    k = 1000
    assert answers["stiff"] == pytest.approx([(k**2 * math.cos(1) + k * math.sin(1)) / (k**2 + 1)] * 2, rel=1e-5)
    assert answers["rate"] == pytest.approx(0.7, rel=1e-4)


def test_what_it_imports_without_extras(answers):
    optional = {"pandas", "narwhals", "matplotlib", "typer", "rich", "emcee", "arviz", "pyarrow", "openpyxl"}
    assert not optional & set(answers["modules"])


@pytest.mark.parametrize("name", WITHOUT_EXTRAS)
def test_what_needs_an_extra_says_which(answers, name):
    assert answers.get(name) == WITHOUT_EXTRAS[name][1]


@pytest.mark.parametrize("command", [["torchivp"], ["python", "-I", "-m", "torchivp"]])
def test_the_command_says_what_it_needs(environment, command):
    done = run_program([environment / command[0], *command[1:], "--version"])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "torchivp: the command line needs typer and rich: pip install 'torchivp[cli]'\n"
