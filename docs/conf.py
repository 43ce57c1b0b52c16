"""The site, by Sphinx: the pages of this folder as they stand, which are read on GitHub as well. `make docs` builds it.

Nothing on it is loaded from elsewhere. index.md lists the pages; its headings and links become the navigation.
"""

import importlib.metadata
import re
from html import escape
from pathlib import Path

import networkx
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

project = "text2token"
author = copyright = "The text2token authors"
release = importlib.metadata.version("text2token")

extensions = ["myst_parser"]
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
html_theme = "furo"
html_title = "text2token"
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None

PAGES = Path(__file__).parent


def without_the_rest(app: Sphinx, name: str, source: list[str]) -> None:
    """Turn links to files that are beside this folder, and so not on the site, into their names."""
    source[0] = re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", source[0])


def with_navigation(app: Sphinx, name: str, source: list[str]) -> None:
    """Add to the list of pages what Sphinx makes its navigation of: a hidden table of contents for each heading.

    Pages that the list does not name come last, so that a new one is never lost.
    """
    if name != "index":
        return
    listed = {
        kind: re.findall(r"\]\(([\w-]+)\.md\)", text)
        for kind, _, text in (section.partition("\n") for section in source[0].split("\n## ")[1:])
    }
    named = {"index"}.union(*listed.values())
    listed["More"] = sorted(page.stem for page in PAGES.glob("*.md") if page.stem not in named)
    for kind, pages in listed.items():
        if pages:
            source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {kind}", "", *pages, "```", ""])


class Mermaid(SphinxDirective):
    """A mermaid flowchart of arrows, which GitHub draws itself, as a picture that needs no script."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the picture."""
        graph = networkx.DiGraph(line.split(" --> ") for line in map(str.strip, self.content) if " --> " in line)
        return [nodes.raw("", drawn(graph), format="html")]


def drawn(graph: networkx.DiGraph) -> str:
    """Return an acyclic graph as SVG, in rows: what needs nothing is at the bottom, arrows lead downwards."""
    rows = [sorted(row) for row in networkx.topological_generations(graph.reverse())]
    rows.reverse()
    wide, high, width = 118, 60, 118 * max(map(len, rows))
    places = {
        name: ((number + 0.5) * width / len(row), (level + 0.5) * high)
        for level, row in enumerate(rows)
        for number, name in enumerate(row)
    }
    lines = [
        f'<line x1="{places[one][0]:.0f}" y1="{places[one][1] + 12:.0f}" x2="{places[other][0]:.0f}" '
        f'y2="{places[other][1] - 14:.0f}" marker-end="url(#tip)"/>'
        for one, other in sorted(graph.edges)
    ]
    boxes = [
        f'<rect x="{x - wide / 2 + 6:.0f}" y="{y - 12:.0f}" width="{wide - 12}" height="24" rx="4"/>'
        f'<text x="{x:.0f}" y="{y + 4:.0f}">{escape(name)}</text>'
        for name, (x, y) in places.items()
    ]
    return f"""<svg viewBox="0 0 {width} {high * len(rows)}" role="img" aria-label="which package needs which" class="graph">
<style>.graph {{ max-width: 100%; font: 13px sans-serif; text-anchor: middle; fill: currentColor }}
.graph line {{ stroke: currentColor; opacity: .35 }}
.graph rect {{ fill: var(--color-background-secondary); stroke: currentColor }}
</style><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z"/></marker></defs>
{"".join(lines)}{"".join(boxes)}</svg>"""


def setup(app: Sphinx) -> None:
    """Connect the above to Sphinx."""
    app.connect("source-read", without_the_rest)
    app.connect("source-read", with_navigation)
    app.add_directive("mermaid", Mermaid)
