"""The documentation keeps its promises: every snippet runs, every command works, every link leads somewhere.

The snippets of a file run in order, in one namespace and one directory, as a reader would type them in:
`python` blocks in this process, and the lines of `console` and `bash` blocks that begin with `$ torchivp`
in a shell. A block marked `{.no-run}` is skipped, and a `text` block marked `{.printed}` is what the Python block
before it prints, but for the width of its lines; `...` in it stands for anything.

The pages of the gallery are run while the site is built, by `docs/hooks.py`, and not here.
"""

import os
import re
import shutil
import sys
import textwrap
import traceback
from pathlib import Path

import pytest

from programs import run_program
from snippets import FENCE, Snippet, main_module, run, snippets, with_what_they_print

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
HOME = ROOT / "docs" / "index.md"
GALLERY = [page for page in PAGES if page.parent.name == "gallery" and page.stem != "index"]

INFO = re.compile(r"""[\w+-]*(?: \{[^{}]*\}|(?: \w+="[^"]*")*)""")
"""What may follow the ticks of a fence: the site takes a block with anything else for text."""
LINK = re.compile(r"""\]\(\s*<?([^\s)>]+)|^\[[^\]]+\]:\s+(\S+)|(?:src|href)=["']([^"']+)""", re.M)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def run_python(page: Path, snippet: Snippet, namespace: dict) -> None:
    """Run a snippet; the test fails if it does."""
    try:
        run(page, snippet, namespace)
        return
    except Exception as caught:
        error = caught.with_traceback(caught.__traceback__.tb_next.tb_next)  # without frames of the test's own
    in_page = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == str(page)]
    line = in_page[-1] if in_page else getattr(error, "lineno", snippet.line)
    fail(page, line, "".join(traceback.format_exception(error)))


def run_shell(page: Path, snippet: Snippet) -> None:
    """Run a command as typed, with the `torchivp` of this environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = run_program(snippet.code, shell=True, env={**os.environ, "PATH": path})
    if done.returncode != 0:
        fail(page, snippet.line, f"$ {snippet.code}\n{done.stdout}{done.stderr}exit status {done.returncode}")


def is_like(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed: the same words, with `...` for anything."""
    pattern = ".*".join(re.escape(part) for part in " ".join(shown.split()).split("..."))
    return re.fullmatch(pattern, " ".join(printed.split())) is not None


def fail(page: Path, line: int, report: str) -> None:
    """Fail the test, naming the line of the page."""
    pytest.fail(f"{page.relative_to(ROOT)}:{line}: this snippet fails\n{report}", pytrace=False)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in GALLERY], ids=lambda page: str(page.relative_to(ROOT))
)
def test_snippets_run(page, tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "examples" / "data")
    monkeypatch.chdir(tmp_path)
    with main_module() as namespace:
        for snippet in snippets(page.read_text(encoding="utf-8")):
            if snippet.language == "python":
                capsys.readouterr()
                run_python(page, snippet, namespace)
            elif snippet.language == "printed":
                printed = capsys.readouterr().out
                if not is_like(snippet.code, printed):
                    fail(page, snippet.line, f"printed was\n{printed}")
            else:
                run_shell(page, snippet)


@each_page
def test_fences_are_such_as_the_site_understands(page):
    fences = FENCE.finditer(page.read_text(encoding="utf-8"))
    strange = [fence[0] for fence in fences if not INFO.fullmatch(fence["info"])]
    assert not strange


def build_site(folder: Path, **options) -> None:
    """Build the site as `make docs` does, but for its theme, the docstrings and the gallery, which take long."""
    build = pytest.importorskip("mkdocs.commands.build", reason="mkdocs is installed by `make docs`")
    from mkdocs.config import load_config

    options = {"theme": "mkdocs", "plugins": [], "extra": {"run_gallery": False}, **options}
    build.build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), **options))


def test_the_site_is_built_without_a_fence_in_its_text(tmp_path):
    build_site(tmp_path)
    assert {page.stem for page in PAGES[1:]} <= {"index", *(page.parent.name for page in tmp_path.rglob("*.html"))}


@pytest.mark.parametrize("code", ["import torchivp\n", "import torchivp\n\ntorchivp.compat.install()\n"])
def test_a_site_with_a_fence_in_its_text_is_not_built(code, tmp_path, caplog):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Page\n\n```python no-run\n{code}```\n")
    with pytest.raises(Exception, match="BuildError"):
        build_site(tmp_path / "site", docs_dir=str(tmp_path / "docs"), nav=None)
    assert re.search(r"index\.md: a fence is shown as text: .*python no-run", caplog.text)


def site_of_a_gallery(folder: Path, code: str) -> Path:
    """Build a site with one page in its gallery."""
    (folder / "docs" / "gallery").mkdir(parents=True)
    (folder / "docs" / "index.md").write_text("# Home\n")
    (folder / "docs" / "gallery" / "page.md").write_text(f"# Page\n\n```python\n{code}```\n\n![A line](line.svg)\n")
    build_site(folder / "site", docs_dir=str(folder / "docs"), nav=None, extra={})
    return folder / "site" / "gallery"


def test_a_page_of_the_gallery_shows_what_its_code_prints_and_draws(tmp_path):
    code = """
from matplotlib.figure import Figure

figure = Figure()
figure.subplots().plot([0, 1])
figure.savefig("line.svg")
print(6 * 7, "points")
"""
    built = site_of_a_gallery(tmp_path, code)
    page = (built / "page" / "index.html").read_text()
    assert "42 points" in page and 'src="../line.svg"' in page
    assert "<svg" in (built / "line.svg").read_text()


def test_a_page_of_the_gallery_that_fails_fails_the_site(tmp_path, caplog):
    with pytest.raises(Exception, match="BuildError"):
        site_of_a_gallery(tmp_path, "assert 1 == 2, 'the closed form'\n")
    assert "page.md: its code fails: AssertionError: the closed form" in caplog.text


def test_what_code_prints_is_put_below_it():
    text = (
        "# A\n\n```python\nx = 6\nprint(x)\n```\n\n```python {.source}\nprint('y = 1')\n```\n\n```python\nx = 1\n```\n"
    )
    shown = with_what_they_print(text, "a.md")
    assert shown == text.replace("print(x)\n```", "print(x)\n```\n\n```text {.output}\n6\n```").replace(
        "print('y = 1')\n```", "print('y = 1')\n```\n\n```python {.output}\ny = 1\n```"
    )


@each_page
def test_relative_links_resolve(page):
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    targets = (next(filter(None, groups)) for groups in LINK.findall(text))
    relative = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:|//", target)]
    drawn = set(re.findall(r'savefig\("(\S+)"', "".join(page.read_text(encoding="utf-8") for page in GALLERY)))
    in_gallery = page.parent.name == "gallery"
    broken = [x for x in relative if not ((page.parent / x).exists() or (in_gallery and x in drawn))]
    assert not broken, f"{page.relative_to(ROOT)} links to what does not exist: {broken}"


def test_a_page_is_read_as_its_reader_does():
    text = textwrap.dedent(
        """
        ```python
        a = 1
        ```

        - In a list:

            ```python title="two.py"
            b = 2
            ```

        ```python {.no-run}
        c = 3
        ```

        ```console
        $ pip install torchivp
        $ torchivp fit data.csv \\
            --out report
        Report written.
        $ torchivp models
        ```

        ```text {.printed}
        1
        ```

        ```text
        not checked
        ```
        """
    )
    assert snippets(text) == [
        Snippet("python", "a = 1\n", 3),
        Snippet("python", "b = 2\n", 9),
        Snippet("shell", "torchivp fit data.csv \\\n    --out report", 18),
        Snippet("shell", "torchivp models", 21),
        Snippet("printed", "1\n", 25),
    ]


def test_what_is_printed_is_compared_word_for_word():
    assert is_like("off by ... at\nthe end\n", "off by 3e-5 at the end")
    assert not is_like("off by ... at\nthe end\n", "off by 3e-5 at the start")
    assert not is_like("a.c", "abc")


def test_the_readme_lists_every_page_and_every_example():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    wanted = [f"](docs/{page.relative_to(ROOT / 'docs')})" for page in PAGES[1:] if page not in [HOME, *GALLERY]]
    wanted += [f"`{example.name}`" for example in (ROOT / "examples").glob("*.py")]
    assert not [name for name in wanted if name not in readme]


def test_the_first_page_and_the_menu_list_every_page():
    first, menu = (path.read_text(encoding="utf-8") for path in (HOME, ROOT / "mkdocs.yml"))
    names = [str(page.relative_to(ROOT / "docs")) for page in PAGES[1:] if page != HOME]
    assert not [name for name in names if f" {name}\n" not in menu]
    assert not [name for name in names if f"]({name})" not in first and ROOT / "docs" / name not in GALLERY]


def test_the_gallery_shows_every_page():
    index = (ROOT / "docs" / "gallery" / "index.md").read_text(encoding="utf-8")
    assert not [page.name for page in GALLERY if f"]({page.name})" not in index]


def test_every_public_name_is_in_the_reference():
    import torchivp

    reference = (ROOT / "docs" / "api.md").read_text()
    missing = [name for name in torchivp.__all__ if name not in reference]
    assert not missing


def test_every_method_and_its_options_are_in_the_reference():
    from torchivp import ODE_METHODS

    reference = (ROOT / "docs" / "api.md").read_text()
    for method in ODE_METHODS.values():
        assert f"::: {method.__module__}.{method.__name__}\n" in reference
        for option in method.options:
            assert f"`{option}`" in reference
