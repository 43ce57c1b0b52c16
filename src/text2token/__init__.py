"""Unlabelled text in, a sentence-transformers embedder out.

The public names are imported when first used: importing torch takes seconds, and `text2token --help` should not.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from text2token.adapters import LoraSettings
    from text2token.backbone import BackboneSettings, load_embedder
    from text2token.corpus.prepare import Corpus, CorpusSettings, prepare_corpus
    from text2token.corpus.readers import read_documents
    from text2token.errors import Text2TokenError
    from text2token.export import export_embedder
    from text2token.head import LanguageModelHead, load_head
    from text2token.lens.key_tokens import KeyToken, key_tokens
    from text2token.lens.learning import learn_from_head, learn_from_words
    from text2token.lens.metrics import Alignment, alignment
    from text2token.lens.pair import Contributions
    from text2token.lens.reader import TokenReader, open_reader, save_reader
    from text2token.loss import TokenTargetLoss, sparse_kl
    from text2token.recipe import Recipe, RunResult, run
    from text2token.search.index import Hit, Index, fill_index
    from text2token.serve.app import create_app
    from text2token.serve.limits import Limits
    from text2token.serve.service import Service, open_service
    from text2token.static import static_embedder
    from text2token.targets.data_driven import DataDrivenSettings, DataDrivenTargets
    from text2token.targets.store import open_targets, write_targets
    from text2token.training import StageSettings, train_stage
    from text2token.vocabulary import TargetVocabulary, VocabularySettings

_HOMES = {
    "Alignment": "lens.metrics",
    "BackboneSettings": "backbone",
    "Contributions": "lens.pair",
    "Corpus": "corpus.prepare",
    "CorpusSettings": "corpus.prepare",
    "DataDrivenSettings": "targets.data_driven",
    "DataDrivenTargets": "targets.data_driven",
    "Hit": "search.index",
    "Index": "search.index",
    "KeyToken": "lens.key_tokens",
    "LanguageModelHead": "head",
    "Limits": "serve.limits",
    "LoraSettings": "adapters",
    "Recipe": "recipe",
    "RunResult": "recipe",
    "Service": "serve.service",
    "StageSettings": "training",
    "TargetVocabulary": "vocabulary",
    "Text2TokenError": "errors",
    "TokenReader": "lens.reader",
    "TokenTargetLoss": "loss",
    "VocabularySettings": "vocabulary",
    "alignment": "lens.metrics",
    "create_app": "serve.app",
    "export_embedder": "export",
    "fill_index": "search.index",
    "key_tokens": "lens.key_tokens",
    "learn_from_head": "lens.learning",
    "learn_from_words": "lens.learning",
    "load_embedder": "backbone",
    "load_head": "head",
    "open_reader": "lens.reader",
    "open_service": "serve.service",
    "open_targets": "targets.store",
    "prepare_corpus": "corpus.prepare",
    "read_documents": "corpus.readers",
    "run": "recipe",
    "save_reader": "lens.reader",
    "sparse_kl": "loss",
    "static_embedder": "static",
    "train_stage": "training",
    "write_targets": "targets.store",
}

__all__ = [
    "Alignment",
    "BackboneSettings",
    "Contributions",
    "Corpus",
    "CorpusSettings",
    "DataDrivenSettings",
    "DataDrivenTargets",
    "Hit",
    "Index",
    "KeyToken",
    "LanguageModelHead",
    "Limits",
    "LoraSettings",
    "Recipe",
    "RunResult",
    "Service",
    "StageSettings",
    "TargetVocabulary",
    "Text2TokenError",
    "TokenReader",
    "TokenTargetLoss",
    "VocabularySettings",
    "alignment",
    "create_app",
    "export_embedder",
    "fill_index",
    "key_tokens",
    "learn_from_head",
    "learn_from_words",
    "load_embedder",
    "load_head",
    "open_reader",
    "open_service",
    "open_targets",
    "prepare_corpus",
    "read_documents",
    "run",
    "save_reader",
    "sparse_kl",
    "static_embedder",
    "train_stage",
    "write_targets",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'text2token' has no attribute {name!r}")
    return getattr(importlib.import_module(f"text2token.{_HOMES[name]}"), name)
