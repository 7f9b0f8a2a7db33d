"""The documentation keeps its promises: every snippet runs, every command works, every link leads somewhere.

The snippets of a file run in order, in one namespace and one directory, as a reader would type them in:
`python` blocks in this process, and the lines of `console` and `bash` blocks that begin with `$ torchivp`
in a shell. A block marked `{.no-run}` is skipped, and a `text` block marked `{.printed}` is what the Python block
before it prints, but for the width of its lines; `...` in it stands for anything.
"""

import os
import re
import shutil
import sys
import textwrap
import traceback
import types
from pathlib import Path
from typing import NamedTuple

import pytest

from programs import run_program

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<ticks>`{3,})(?P<info>[^`\n]*)\n(?P<code>.*?)^(?P=indent)(?P=ticks)[ \t]*$",
    re.M | re.S,
)
COMMAND = re.compile(r"^\$ (torchivp (?:.*\\\n)*.*)$", re.M)
INFO = re.compile(r"""[\w+-]*(?: \{[^{}]*\}|(?: \w+="[^"]*")*)""")
"""What may follow the ticks of a fence: the site takes a block with anything else for text."""
LINK = re.compile(r"""\]\(\s*<?([^\s)>]+)|^\[[^\]]+\]:\s+(\S+)|(?:src|href)=["']([^"']+)""", re.M)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


class Snippet(NamedTuple):
    """A piece of code and the line of its page on which it starts."""

    language: str
    code: str
    line: int


def snippets(text: str) -> list[Snippet]:
    """The snippets of a page that can be run: Python blocks whole, shell blocks command by command."""
    found = []
    for fence in FENCE.finditer(text):
        language, *flags = re.findall(r"[\w-]+", fence["info"]) or [""]
        line = text.count("\n", 0, fence.start("code")) + 1
        code = textwrap.dedent(fence["code"])
        if "no-run" in flags:
            continue
        if language in ("python", "py"):
            found.append(Snippet("python", code, line))
        elif language == "text" and "printed" in flags:
            found.append(Snippet("printed", code, line))
        elif language in ("console", "bash"):
            for command in COMMAND.finditer(code):
                found.append(Snippet("shell", command[1], line + code.count("\n", 0, command.start())))
    return found


def run_python(page: Path, snippet: Snippet, namespace: dict) -> None:
    """Run a snippet so that its tracebacks, and `inspect.getsource`, see the page and its line numbers."""
    code = "\n" * (snippet.line - 1) + snippet.code
    try:
        exec(compile(code, str(page), "exec"), namespace)
        return
    except Exception as caught:
        error = caught.with_traceback(caught.__traceback__.tb_next)  # without this function's own frame
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


@each_page
def test_snippets_run(page, tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "examples" / "data")
    monkeypatch.chdir(tmp_path)
    main = types.ModuleType("__main__")  # which func is looked up in when it is compiled
    monkeypatch.setitem(sys.modules, "__main__", main)
    namespace = vars(main)
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
    """Build the site as `make docs` does, but for its theme and the docstrings, which take long."""
    build = pytest.importorskip("mkdocs.commands.build", reason="mkdocs is installed by `make docs`")
    from mkdocs.config import load_config

    build.build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), theme="mkdocs", plugins=[], **options))


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


@each_page
def test_relative_links_resolve(page):
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    targets = (next(filter(None, groups)) for groups in LINK.findall(text))
    relative = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:|//", target)]
    broken = [target for target in relative if not (page.parent / target).exists()]
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
    wanted = [f"](docs/{page.name})" for page in PAGES[1:] if page.name != "index.md"]
    wanted += [f"`{example.name}`" for example in (ROOT / "examples").glob("*.py")]
    assert not [name for name in wanted if name not in readme]


def test_the_first_page_and_the_menu_list_every_page():
    first, menu = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/index.md", "mkdocs.yml"))
    names = [page.name for page in PAGES[1:] if page.name != "index.md"]
    assert not [name for name in names if f"]({name})" not in first or f": {name}\n" not in menu]


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
