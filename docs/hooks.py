"""What mkdocs asks while it builds the site: the list of sources, and that no page shows the marks of a code block."""

import re

from mkdocs.exceptions import PluginError

from torchivp.references import entries

# A fence that the site does not understand is text; or, without an empty line in it, a paragraph of inline code.
FENCE_AS_TEXT = re.compile(r"```[^\n<]*|<p><code>[^\n<]*(?=\n[^<]*</code></p>)")

SOURCES = "<!-- sources -->"


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Put the sources of torchivp's methods where the page has a place for them."""
    return markdown.replace(SOURCES, list_of_sources()) if SOURCES in markdown else markdown


def list_of_sources() -> str:
    """Every entry of `references.bib` as an item of a list: its key, authors, title, where and when it appeared."""
    from pybtex import PybtexEngine

    written = {
        key: PybtexEngine().format_from_string(entry, style="plain", output_backend="markdown", citations=[key])
        for key, entry in entries().items()
    }
    return "\n".join(f"- `{key}`: {' '.join(text.removeprefix('[1] ').split())}" for key, text in written.items())


def on_post_page(output: str, page, config) -> str:
    """Refuse a page that shows a fence: its block would be read as prose."""
    if found := FENCE_AS_TEXT.search(output):
        raise PluginError(f"{page.file.src_uri}: a fence is shown as text: {found[0]}")
    return output
