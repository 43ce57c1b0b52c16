"""Text is read and written as UTF-8, whatever the machine's own encoding is."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for folder in ("src", "tests", "docs", "bench") for path in sorted((ROOT / folder).rglob("*.py"))]
BEFORE_ENCODING = {"read_text": 0, "write_text": 1, "open": 2}  # positional arguments
OTHERS = ("gzip", "bz2", "lzma", "zstandard", "Image", "os", "webbrowser", "cls", "Corpus", "Index", "Run", "files", "pq")


def without_encoding(tree: ast.Module) -> Iterator[ast.Call]:
    """Yield the calls that read or write text and do not say how it is spelt."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = (
            node.func.attr
            if isinstance(node.func, ast.Attribute)
            else node.func.id
            if isinstance(node.func, ast.Name)
            else ""
        )
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        if name not in BEFORE_ENCODING or (isinstance(owner, ast.Name) and owner.id in OTHERS):
            continue
        if any(keyword.arg in ("encoding", None) for keyword in node.keywords):
            continue
        if name == "open":
            modes = [*node.args[0 if owner else 1 :], *(word.value for word in node.keywords if word.arg == "mode")][:1]
            mode = modes[0].value if modes and isinstance(modes[0], ast.Constant) else "r" if not modes else "b"
            if not isinstance(mode, str) or "b" in mode or not set(mode) <= set("rwaxt+"):
                continue
        yield node


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_text_is_left_to_the_encoding_of_the_machine(path: Path) -> None:
    found = [node.lineno for node in without_encoding(ast.parse(path.read_text(encoding="utf-8")))]
    assert not found, f"lines {found}: say encoding='utf-8'"
