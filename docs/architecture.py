"""Draws the rooms of the house into architecture.md: who imports whom, and what each is for in its own words.

python docs/architecture.py            # after a change of imports; tests/test_layers.py says when
"""

import ast
from pathlib import Path

import networkx

ROOT = Path(__file__).parents[1] / "src" / "text2token"
PAGE = Path(__file__).with_name("architecture.md")
MARK = "<!-- what follows is written by docs/architecture.py -->\n"


def modules() -> dict[str, Path]:
    """Return every module's file by its dotted name inside the package; packages themselves are no modules."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in sorted(ROOT.rglob("*.py"))
        if path.name != "__init__.py"
    }


def imported(path: Path) -> set[str]:
    """Return the modules of ours that a file imports, anywhere in it."""
    known = modules()
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("text2token."):
            module = node.module.removeprefix("text2token.")
            names |= {module} if module in known else {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.level or node.module == "text2token"):
            raise AssertionError(f"{path}: import the module itself, not through the package")
    return names


def rooms() -> networkx.DiGraph:
    """Return which room imports from which; a room is a folder of modules, or a module that stands alone."""
    graph = networkx.DiGraph()
    for name, path in modules().items():
        room = name.partition(".")[0]
        graph.add_node(room)
        graph.add_edges_from((room, other) for other in (one.partition(".")[0] for one in imported(path)) if other != room)
    return graph


def drawn() -> str:
    """Return the graph, without the ways that lead through another room anyway, and a paragraph on each room."""
    graph = rooms()
    ways = networkx.transitive_reduction(graph)
    order = list(networkx.lexicographical_topological_sort(graph.reverse()))
    lines = ["```mermaid", "flowchart BT", *(f"  {here} --> {there}" for here, there in sorted(ways.edges)), "```", ""]
    for room in order:
        lines += [f"**{room}**: {_told_by(room)}", ""]
    return "\n".join(lines)


def _told_by(room: str) -> str:
    """Return the first paragraph of the docstring of a room."""
    folder = ROOT / room
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    inside = f" ({', '.join(sorted(one.stem for one in folder.glob('[!_]*.py')))})" if folder.is_dir() else ""
    return " ".join(told.partition("\n\n")[0].split()) + inside


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text(encoding="utf-8").partition(MARK)[0] + MARK + "\n" + drawn(), encoding="utf-8")
