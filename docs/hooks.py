"""What mkdocs asks while it builds the site: run the gallery, list the sources, and show no marks of a code block.

A page of the gallery is Markdown like the others. Its Python blocks are run here, in a folder of their own with the
repository's `examples/`; what they print is put below them, and the pictures that they save are files of the site. So a
page cannot show what its code does not do, and one that fails fails the build. `mkdocs serve` runs a page again when it
has changed.
"""

import logging
import os
import re
import tempfile
import time
from functools import cache
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

from snippets import with_what_they_print
from torchivp.references import entries

log = logging.getLogger("mkdocs.hooks.gallery")

# A fence that the site does not understand is text; or, without an empty line in it, a paragraph of inline code.
FENCE_AS_TEXT = re.compile(r"```[^\n<]*|<p><code>[^\n<]*(?=\n[^<]*</code></p>)")

SOURCES = "<!-- sources -->"


def list_of_sources() -> str:
    """Every entry of `references.bib` as an item of a list: its key, authors, title, where and when it appeared."""
    from pybtex import PybtexEngine

    written = {
        key: PybtexEngine().format_from_string(entry, style="plain", output_backend="markdown", citations=[key])
        for key, entry in entries().items()
    }
    return "\n".join(f"- `{key}`: {' '.join(text.removeprefix('[1] ').split())}" for key, text in written.items())


@cache
def gallery_page(text: str, path: Path) -> tuple[str, dict[str, bytes]]:
    """The text of a page of the gallery with what its code prints, and the pictures that it saves."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "examples").symlink_to(path.parents[2] / "examples")
        before = os.getcwd()
        os.chdir(folder)
        try:
            shown = with_what_they_print(text, path)
        except Exception as error:
            raise PluginError(f"{path.name}: its code fails: {type(error).__name__}: {error}") from error
        finally:
            os.chdir(before)
        pictures = {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()}
    log.info("%s: run in %.1f s", path.name, time.perf_counter() - began)
    return shown, pictures


def is_in_gallery(file: File, config) -> bool:
    """Whether a file is a page of the gallery, which is run unless the configuration says otherwise."""
    runs = config.extra.get("run_gallery", True)
    return runs and file.src_uri.startswith("gallery/") and file.is_documentation_page()


def on_files(files, config):
    """Run the gallery, and add its pictures to the site."""
    for file in [file for file in files if is_in_gallery(file, config)]:
        for name, content in gallery_page(file.content_string, Path(file.abs_src_path))[1].items():
            files.append(File.generated(config, f"gallery/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Show what the code of a page of the gallery prints, and the sources where a page has a place for them."""
    if SOURCES in markdown:
        return markdown.replace(SOURCES, list_of_sources())
    if is_in_gallery(page.file, config):
        return gallery_page(page.file.content_string, Path(page.file.abs_src_path))[0]
    return markdown


def on_post_page(output: str, page, config) -> str:
    """Refuse a page that shows a fence: its block would be read as prose."""
    if found := FENCE_AS_TEXT.search(output):
        raise PluginError(f"{page.file.src_uri}: a fence is shown as text: {found[0]}")
    return output
