"""The pieces of code on a page: where they are, and what they print when they are run one after the other."""

import contextlib
import io
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<ticks>`{3,})(?P<info>[^`\n]*)\n(?P<code>.*?)^(?P=indent)(?P=ticks)[ \t]*$",
    re.M | re.S,
)
_COMMAND = re.compile(r"^\$ (torchivp (?:.*\\\n)*.*)$", re.M)


class Snippet(NamedTuple):
    """A piece of code and the line of its page on which it starts."""

    language: str
    code: str
    line: int


def words(fence: re.Match[str]) -> list[str]:
    """The language of a fence, and its flags."""
    return re.findall(r"[\w-]+", fence["info"]) or [""]


def snippets(text: str) -> list[Snippet]:
    """The snippets of a page that can be run: Python blocks whole, shell blocks command by command.

    Among them are blocks of what the Python block before prints, as the language "printed".
    """
    found = []
    for fence in FENCE.finditer(text):
        language, *flags = words(fence)
        line = text.count("\n", 0, fence.start("code")) + 1
        code = textwrap.dedent(fence["code"])
        if "no-run" in flags:
            continue
        if language in ("python", "py"):
            found.append(Snippet("python", code, line))
        elif language == "text" and "printed" in flags:
            found.append(Snippet("printed", code, line))
        elif language in ("console", "bash"):
            for command in _COMMAND.finditer(code):
                found.append(Snippet("shell", command[1], line + code.count("\n", 0, command.start())))
    return found


@contextmanager
def main_module() -> Iterator[dict]:
    """The namespace of a new module `__main__`, which functions are looked up in when they are compiled."""
    kept, path = sys.modules["__main__"], sys.path.copy()
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield vars(sys.modules["__main__"])
    finally:
        sys.modules["__main__"] = kept
        for folder in set(sys.path) - set(path):
            sys.path_importer_cache.pop(folder, None)  # a relative one would mean another folder the next time
        sys.path[:] = path


def run(page: Path | str, snippet: Snippet, namespace: dict) -> None:
    """Run a Python snippet so that its tracebacks, and `inspect.getsource`, see the page and its line numbers."""
    exec(compile("\n" * (snippet.line - 1) + snippet.code, str(page), "exec"), namespace)


def with_what_they_print(text: str, page: Path | str) -> str:
    """The page with the output of every Python block below it; one marked `{.source}` prints Python."""
    parts, end = [], 0
    with main_module() as namespace:
        for fence in FENCE.finditer(text):
            language, *flags = words(fence)
            if language != "python" or "no-run" in flags:
                continue
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                run(page, Snippet(language, fence["code"], text.count("\n", 0, fence.start("code")) + 1), namespace)
            parts.append(text[end : fence.end()])
            if output := printed.getvalue().rstrip():
                parts.append(f"\n\n```{'python' if 'source' in flags else 'text'} {{.output}}\n{output}\n```")
            end = fence.end()
    return "".join([*parts, text[end:]])
