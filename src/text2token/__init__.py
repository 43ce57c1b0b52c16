"""Unlabelled text in, a sentence-transformers embedder out.

The names below are the ones to build on; what else is in the package may change with any release. They are imported when
first used: importing torch takes seconds, and `text2token --help` should not.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from text2token.corpus.documents import Document
    from text2token.corpus.readers import read_documents
    from text2token.errors import (
        CorpusError,
        EngineUnavailable,
        ModelError,
        OutputError,
        TargetMismatch,
        Text2TokenError,
        TrainingDiverged,
        UsageError,
    )
    from text2token.evaluation.models import EvaluationSettings, evaluate
    from text2token.export.static import build_static
    from text2token.lens.fit import learn_from_words
    from text2token.lens.reader import TokenReader, open_reader
    from text2token.model.backbone import load_embedder
    from text2token.model.whitening import fit_postprocessing
    from text2token.recipe import (
        BackboneSettings,
        CorpusDerivedSettings,
        CorpusSettings,
        DataDrivenSettings,
        LikelihoodRatioSettings,
        LoraSettings,
        ModelDerivedSettings,
        ReadingSettings,
        Recipe,
        StageSettings,
        TargetSettings,
        VocabularySettings,
        read_recipe,
    )
    from text2token.search.index import Index, fill_index
    from text2token.training.run import Result, build_targets, train

_HOMES = {
    "BackboneSettings": "recipe",
    "CorpusDerivedSettings": "recipe",
    "CorpusError": "errors",
    "CorpusSettings": "recipe",
    "DataDrivenSettings": "recipe",
    "Document": "corpus.documents",
    "EngineUnavailable": "errors",
    "EvaluationSettings": "evaluation.models",
    "Index": "search.index",
    "LikelihoodRatioSettings": "recipe",
    "LoraSettings": "recipe",
    "ModelDerivedSettings": "recipe",
    "ModelError": "errors",
    "OutputError": "errors",
    "ReadingSettings": "recipe",
    "Recipe": "recipe",
    "Result": "training.run",
    "StageSettings": "recipe",
    "TargetMismatch": "errors",
    "TargetSettings": "recipe",
    "Text2TokenError": "errors",
    "TokenReader": "lens.reader",
    "TrainingDiverged": "errors",
    "UsageError": "errors",
    "VocabularySettings": "recipe",
    "build_static": "export.static",
    "build_targets": "training.run",
    "evaluate": "evaluation.models",
    "fill_index": "search.index",
    "fit_postprocessing": "model.whitening",
    "learn_from_words": "lens.fit",
    "load_embedder": "model.backbone",
    "open_reader": "lens.reader",
    "read_documents": "corpus.readers",
    "read_recipe": "recipe",
    "train": "training.run",
}

_EXTRAS = {"evaluation.models": "evaluate", "search.index": "search"}  # homes that stand on the packages of an extra

__all__ = [
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


if not TYPE_CHECKING:  # to a type checker it would give every name, misspelt ones too

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'text2token' has no attribute {name!r}")
        home = _HOMES[name]
        try:
            return getattr(importlib.import_module(f"text2token.{home}"), name)
        except ModuleNotFoundError as error:
            if home not in _EXTRAS or (error.name or "").startswith("text2token"):
                raise
            remedy = f"pip install 'text2token[{_EXTRAS[home]}]'"
            raise ModuleNotFoundError(f"{name} needs the package {error.name}: {remedy}", name=error.name) from None


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
