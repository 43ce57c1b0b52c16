"""Writes the pages of reference that must agree with the code: the command line, the settings, the Python names.

python docs/reference.py               # after a change of any of them; tests/test_docs.py says when
"""

import ast
import dataclasses
import importlib
import inspect
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

import text2token
from text2token.cli.main import app
from text2token.recipe import Recipe
from text2token.serve.limits import Limits
from text2token.settings import item_name

FOLDER = Path(__file__).parent
WIDTH = 100
WRITTEN = "<!-- written by docs/reference.py; change the code, not this page -->\n"


def cli_page() -> str:
    """Return what `--help` says of every command."""
    program = typer.main.get_command(app)
    context = program.make_context("text2token", [], resilient_parsing=True, terminal_width=WIDTH)
    lines = [
        "# The command line",
        "",
        WRITTEN,
        "What `text2token COMMAND --help` says. Results go to standard output, everything else to standard error.",
    ]
    for name, text in _helps(program, context, ""):
        lines += ["", f"## text2token {name}".rstrip(), "", "```text", text, "```"]
    return "\n".join(lines) + "\n"


def _helps(command: Any, context: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the help of a command and of those in it, hidden ones apart."""
    yield name, command.get_help(context).strip()
    for verb, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            inside = inner.make_context(verb, [], parent=context, resilient_parsing=True, terminal_width=WIDTH)
            yield from _helps(inner, inside, f"{name} {verb}".strip())


def settings_page() -> str:
    """Return every key of a recipe, with its type, its default and what its section says about it."""
    lines = [
        "# Settings",
        "",
        WRITTEN,
        "A recipe is a TOML file with these sections; `--set section.key=value` changes one setting for one run. What a",
        "file leaves out has its default. An unknown key is refused, with the nearest one named.",
        *_sections(Recipe, "", "A recipe"),
        *_sections(Limits, "", "Limits of the server (`text2token serve --set`)"),
    ]
    return "\n".join(lines) + "\n"


def _sections(kind: type, path: str, title: str) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    described: Any = kind
    fields = dataclasses.fields(described)
    sections = {field.name: _section(hints[field.name]) for field in fields}
    own = [field for field in fields if not sections[field.name]]
    yield from ["", f"## {title}", "", inspect.cleandoc(kind.__doc__ or "")]
    if own:
        yield from ["", "| key | type | default | |", "|---|---|---|---|"]
    for field in own:
        meaning = (described.__pydantic_fields__[field.name].description or "").replace("\n", " ")
        yield f"| `{path}{field.name}` | {_type(hints[field.name])} | {_default(field)} | {meaning} |"
    for name, inner in sections.items():
        if inner and inner is hints[name]:
            yield from _sections(inner, f"{path}{name}.", f"[{path}{name}]")
        elif inner:
            first, second = (item_name(name, number) for number in (1, 2))
            yield from _sections(inner, f"{path}{first}.", f"[[{path}{name}]]: {first}, {second}, …")


def _section(hint: Any) -> Any:
    """Return the dataclass of a section or of a list of sections; None of what is none."""
    inner = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
    return inner if dataclasses.is_dataclass(inner) else None


def _type(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f'"{choice}"' for choice in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return ", ".join("none" if one is type(None) else _type(one) for one in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"list of {_type(typing.get_args(hint)[0])}"
    return {str: "text", int: "whole number", float: "number", bool: "true, false"}[hint]


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is dataclasses.MISSING:
        return "must be given" if field.default_factory is dataclasses.MISSING else "by the machine"
    if field.default in (None, ()):
        return "none"
    if isinstance(field.default, tuple):
        return ", ".join(f"`{one}`" for one in field.default)
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def names_page() -> str:
    """Return every public name with its signature and docstring, and the public parts of classes."""
    lines = [
        "# Python",
        "",
        WRITTEN,
        "`from text2token import …`: these names are the ones to build on. The rest may change with any release.",
    ]
    for name in text2token.__all__:
        source = Path(str(importlib.import_module(f"text2token.{text2token._HOMES[name]}").__file__)).read_text(
            encoding="utf-8"
        )
        lines += ["", f"## {name}", "", *_told(_definition(ast.parse(source), name))]
    return _formatted("\n".join(lines) + "\n")


def _definition(tree: ast.Module, name: str) -> ast.ClassDef | ast.FunctionDef:
    return next(node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name)


def _told(node: ast.ClassDef | ast.FunctionDef) -> Iterator[str]:
    yield from ["```python", *_signature(node), "```", "", ast.get_docstring(node) or ""]
    for part in node.body if isinstance(node, ast.ClassDef) else []:
        if isinstance(part, ast.FunctionDef) and not part.name.startswith("_") and ast.get_docstring(part):
            yield from ["", *(_told(part))]


def _signature(node: ast.ClassDef | ast.FunctionDef) -> Iterator[str]:
    """Yield the head of a definition: a class with its fields, a function without its body."""
    if isinstance(node, ast.ClassDef):
        yield f"class {node.name}({', '.join(map(ast.unparse, node.bases))}):".replace("():", ":")
        fields = [part for part in node.body if isinstance(part, ast.AnnAssign | ast.Assign)]
        public = [ast.unparse(part) for part in fields if not ast.unparse(part).startswith("_")]
        yield from (f"    {line}" for line in public or ["..."])
        return
    yield from (f"@{ast.unparse(one)}" for one in node.decorator_list)
    returned = ast.unparse(node.returns) if node.returns else "None"
    yield f"def {node.name}({ast.unparse(node.args)}) -> {returned}: ..."


def _formatted(page: str) -> str:
    """Return a page with its Python as ruff writes it, which is what `make check` asks for."""
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(FOLDER / "python.md"), "-"]
    return subprocess.run(command, input=page, capture_output=True, text=True, check=True).stdout


PAGES: dict[str, Callable[[], str]] = {"cli.md": cli_page, "settings.md": settings_page, "python.md": names_page}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (FOLDER / page).write_text(write(), encoding="utf-8")
