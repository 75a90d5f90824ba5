"""Templates, and anybody's text in Markdown and HTML without mark-up of its own."""

from __future__ import annotations

import html
import re

import jinja2

from signfuse_dist.report.figures import data_uri

# Control characters, direction overrides that reorder what follows them, and halves of pairs.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Emphasis, code, links, images, tables, mathematics, and bare addresses that viewers make links of.
_MARKDOWN = re.compile(r"[\\`*_\[\]|~$#@]|:(?=//)|(?<=www)\.")
_LONGEST = 2000  # characters of a sentence that a page shows
LANGUAGE = re.compile(r"[A-Za-z]{1,8}(-[A-Za-z0-9]{1,8})*")


def environment() -> jinja2.Environment:
    """Return the templates; a value that is missing is an error."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("signfuse_dist.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    templates.filters.update(
        data_uri=data_uri, visible=visible, md=escape_markdown, code=_code, cut=_cut
    )
    return templates


def _cut(text: str) -> str:
    """Return a sentence, or the beginning of what is no sentence any more, and its length."""
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}… ({len(text):,} characters)"


def visible(text: object) -> str:
    """Return text in which characters that are no text of their own show as U+FFFD."""
    return _CONTROL.sub("\ufffd", str(text).replace("\r\n", "\n"))


def escape_markdown(text: object) -> str:
    """Return one line of Markdown that reads as ``text`` and holds no mark-up, HTML or Markdown."""
    line = html.escape(" ".join(visible(text).split()), quote=False)
    return _MARKDOWN.sub(r"\\\g<0>", line)


def _code(text: str) -> str:
    """Return an indented code block, which a fence inside the text cannot end."""
    return "\n".join(f"    {line}" for line in visible(text).split("\n"))
