"""Pages of one file that load nothing: a template filled in, and figures by matplotlib in the page's colours."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

FONT_SIZE = 11
# Colours that matplotlib writes into the drawing, and what stands for them on the page, so that they fit light and dark.
PLACEHOLDERS = {"#010101": "var(--ink)", "#020202": "var(--quiet)", "#030303": "var(--rule)", "#040404": "var(--page)"}
INK, QUIET, RULE, PAGE = PLACEHOLDERS
_STYLE: Any = {  # matplotlib's type lists every name there is
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "text2token",  # the same figure, the same file
    "font.size": FONT_SIZE,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": QUIET,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
}


def filled(package: str, template: str, **content: Any) -> str:
    """Return a template of `package` filled with `content`, all of it escaped but `Markup`."""
    # always on, because jinja2's choice by file ending knows no template that comes as a string
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files(package).joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(source).render(**content)


@contextmanager
def drawing() -> Iterator[None]:
    """Let figures that are made within be in the page's style."""
    with rc_context(_STYLE), warnings.catch_warnings():
        # a character that matplotlib's font has not is no loss: the page's font writes it
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        yield


def svg(figure: Figure, colours: Mapping[str, str]) -> Markup:
    """Return the drawing without a size, so that it is as wide as the page; `colours` are further placeholders."""
    written = io.StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    drawn = written.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(
        r'(<svg[^>]*?) width="[^"]*" height="[^"]*"|(<svg[^>]*?) height="[^"]*" width="[^"]*"', r"\1\2", drawn, count=1
    )
    for placeholder, colour in (PLACEHOLDERS | dict(colours)).items():
        drawn = drawn.replace(placeholder, colour)
    return Markup(drawn)  # matplotlib escapes what it writes
