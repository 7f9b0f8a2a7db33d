"""What mkdocs asks while it builds the site: no page may show the marks of a code block as text."""

import re

from mkdocs.exceptions import PluginError

# A fence that the site does not understand is text; or, without an empty line in it, a paragraph of inline code.
FENCE_AS_TEXT = re.compile(r"```[^\n<]*|<p><code>[^\n<]*(?=\n[^<]*</code></p>)")


def on_post_page(output: str, page, config) -> str:
    """Refuse a page that shows a fence: its block would be read as prose."""
    if found := FENCE_AS_TEXT.search(output):
        raise PluginError(f"{page.file.src_uri}: a fence is shown as text: {found[0]}")
    return output
