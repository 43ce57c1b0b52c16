"""The package uses public names, what it takes from inside stands in one file, and the scripts name what there is."""

import ast
import importlib
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

import text2token
from text2token_bench.peers.token_targets import SHUFFLED

BENCH = Path(__file__).parents[1]
INSIDE = BENCH / "src" / "text2token_bench" / "inside.py"


def taken(path: Path) -> Iterator[tuple[str, str]]:
    """Yield module and name of all that a file imports from text2token."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "text2token":
            yield from ((str(node.module), alias.name) for alias in node.names)


@pytest.mark.parametrize("path", sorted((BENCH / "src").rglob("*.py")), ids=lambda path: path.name)
def test_inner_names_are_imported_in_one_file_only(path: Path) -> None:
    assert path == INSIDE or {module for module, _ in taken(path)} <= {"text2token"}


def test_nothing_public_is_taken_from_inside_and_nothing_that_is_not_used() -> None:
    names = {name for _, name in taken(INSIDE)}
    assert not names & set(text2token.__all__)
    rest = "".join(path.read_text(encoding="utf-8") for path in (BENCH / "src").rglob("*.py") if path != INSIDE)
    assert [name for name in sorted(names) if name not in rest] == []


@pytest.mark.parametrize("path", sorted((BENCH / "experiments").glob("*.py")), ids=lambda path: path.name)
def test_an_experiment_names_what_there_is(path: Path) -> None:
    for module, name in taken(path):
        assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


def test_the_product_cites_no_log() -> None:
    source = Path(str(text2token.__file__)).parent
    for path in (path for path in source.rglob("*") if path.suffix in (".py", ".toml", ".jinja")):
        assert not re.search(r"LOG\.md|ablations", path.read_text(encoding="utf-8")), path


def test_every_ablation_is_of_settings_that_there_are() -> None:
    script = runpy.run_path(str(BENCH / "experiments" / "ablations.py"))
    own = (script["STAGE2_SHARE"], script["STAGE2_BESIDE"], SHUFFLED)
    for changes in (changes for group in script["GROUPS"].values() for changes in group.values()):
        recipe = text2token.Recipe(text2token.BackboneSettings("x"))
        chosen = {**script["BASE"], **changes}
        recipe.with_settings([f"{key}={value}" for key, value in chosen.items() if key not in own])
