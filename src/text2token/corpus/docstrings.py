"""The corpus every Python user already has: the docstrings of the standard library.

Sources are parsed, never imported: importing every module would run their code (`antigravity` opens a browser).
Nothing is shipped with the package, so the corpus differs a little between Python versions.
"""

import ast
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from text2token.corpus.documents import Document

# Not the library itself: its tests, a GUI application, vendored or generated code, and other people's packages.
SKIPPED_FOLDERS = frozenset({"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"})


def standard_library_documents(root: Path | None = None) -> Iterator[Document]:
    """Yield one document per public module, class and function that has a docstring.

    `title` is the docstring's first paragraph on one line and `body` the rest; a docstring of one paragraph is all
    body. `place` is the dotted name (`"json.decoder.JSONDecoder.decode"`). `root` defaults to the running interpreter's
    standard library; the order is alphabetical by file, then by position in the file, so it is the same on every run.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED_FOLDERS.intersection(parts) or any(_is_private(part) for part in parts[:-1]):
            continue
        names = parts[:-1] if parts[-1] == "__init__" else parts
        if not names or _is_private(names[-1]):
            continue
        yield from _module_documents(path, ".".join(names))


def _module_documents(path: Path, module_name: str) -> Iterator[Document]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old sources carry invalid escape sequences
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # deliberately broken sources, such as encoding samples
        return
    yield from _documents(tree, module_name)


def _documents(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> Iterator[Document]:
    docstring = ast.get_docstring(node, clean=False)
    if docstring:
        summary, _, rest = inspect.cleandoc(docstring).partition("\n\n")
        summary = " ".join(summary.split())
        if rest.strip():
            yield Document(title=summary, body=rest.strip(), place=name)
        elif summary:
            yield Document(body=summary, place=name)
    if isinstance(node, ast.Module | ast.ClassDef):  # a function's inner functions are not public
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not _is_private(child.name):
                yield from _documents(child, f"{name}.{child.name}")


def _is_private(name: str) -> bool:
    return name.startswith("_")
