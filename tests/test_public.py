"""What a program may build on: few names, stable, typed, and quick to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import text2token
from text2token.errors import exit_codes

# to take a name away, or to give one another meaning, is a new major version
PUBLIC = [
    "BackboneSettings",
    "CorpusDerivedSettings",
    "CorpusError",
    "CorpusSettings",
    "DataDrivenSettings",
    "Document",
    "EngineUnavailable",
    "EvaluationSettings",
    "Index",
    "LikelihoodRatioSettings",
    "LoraSettings",
    "ModelDerivedSettings",
    "ModelError",
    "OutputError",
    "ReadingSettings",
    "Recipe",
    "Result",
    "StageSettings",
    "TargetMismatch",
    "TargetSettings",
    "Text2TokenError",
    "TokenReader",
    "TrainingDiverged",
    "UsageError",
    "VocabularySettings",
    "build_static",
    "build_targets",
    "evaluate",
    "fill_index",
    "fit_postprocessing",
    "learn_from_words",
    "load_embedder",
    "open_reader",
    "read_documents",
    "read_recipe",
    "train",
]


def test_public_names_are_these_and_say_what_they_are() -> None:
    assert text2token.__all__ == PUBLIC == sorted(text2token._HOMES)
    assert set(PUBLIC) <= set(dir(text2token))
    for name in PUBLIC:
        assert getattr(text2token, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Embedder'"):
        _ = text2token.Embedder


def test_type_checkers_see_every_name_where_it_is() -> None:
    tree = ast.parse(Path(str(text2token.__file__)).read_text(encoding="utf-8"))
    seen = {
        alias.name: str(node.module).removeprefix("text2token.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("text2token.")
        for alias in node.names
    }
    assert seen == text2token._HOMES


def test_importing_the_package_imports_no_heavy_library() -> None:
    seen = "import sys, text2token; print(*{'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_every_error_is_public_and_has_an_exit_code_of_its_own() -> None:
    tree = text2token.Text2TokenError.__subclasses__()
    codes = {kind.exit_code for kind in tree}
    assert {kind.__name__ for kind in tree} < set(PUBLIC)
    assert len(codes) == len(tree)
    assert not codes & {0, 1, 130, 141}  # done, a mistake of ours, interrupted, nobody reads the results
    assert codes < exit_codes().keys()


@pytest.mark.parametrize(
    ("name", "package", "extra"), [("Index", "qdrant_edge", "search"), ("EvaluationSettings", "mteb", "evaluate")]
)
def test_a_name_whose_extra_is_missing_says_how_to_install_it(name: str, package: str, extra: str) -> None:
    tried = f"import sys; sys.modules[{package!r}] = None; from text2token import {name}"
    error = subprocess.run([sys.executable, "-c", tried], capture_output=True, text=True).stderr
    assert f"{name} needs the package {package}: pip install 'text2token[{extra}]'" in error
