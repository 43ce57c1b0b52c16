"""What do targets know themselves, before anything learns from them? Each kind scored as if it were an embedder.

    python bench/experiments/teachers.py BACKBONE CORPUS_FILE [--suite FOLDER --suite-tokens N] [--set NAME=VALUE]

A text's target is read in two ways. As words: the cosine of the square roots of two targets, which is how much two
distributions overlap (Bhattacharyya). As vectors: the mean of the head's word vectors under the target, centred, which is
about as much of it as an embedding of the head's dimension can hold. Targets are learnt from the corpus, whose held-out
documents give label-free MRR@10; with a suite every task type stands beside it. A training cannot be blamed for
what its targets do not know.
"""

import argparse
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from torch import Tensor

from text2token.cli.show import TerminalReporter, quiet_libraries
from text2token.corpus.prepare import temporary_corpus
from text2token.corpus.readers import read_documents
from text2token.evaluation.label_free import dense_scores
from text2token.evaluation.labelled import score_suite
from text2token.evaluation.suite import read_suite, sample_suite
from text2token.model.backbone import load_embedder, tokenizer_of
from text2token.model.bundle import Backbone
from text2token.model.encoder import TextEncoder, encoder_of
from text2token.model.head import load_head, word_table
from text2token.model.whitening import fit_postprocessing, sample_texts
from text2token.progress import Progress
from text2token.recipe import BackboneSettings, ConstructorName, Postprocessing, Recipe
from text2token.targets.base import Constructor
from text2token.targets.constructors import make_constructor
from text2token.tokens.vocabulary import TargetVocabulary


def words_encoder(constructor: Constructor, size: int) -> TextEncoder:
    """Return what gives the square roots of the targets of texts, shape (texts, `size`); zeros for a text that has none."""

    def embed(texts: Sequence[str], progress: Progress | None) -> Tensor:
        vectors, row_of = torch.zeros(len(texts), size), {text: row for row, text in enumerate(texts)}
        for batch in constructor.transform(Dataset.from_dict({"text": list(texts)}), progress):
            for target in batch.to_pylist():
                vectors[row_of[target["text"]], target["token_ids"]] = torch.tensor(target["weights"]).sqrt()
        return vectors

    return TextEncoder(f"{constructor.name}, words", _digest(constructor.name, constructor.describe()), embed)


def vectors_encoder(words: TextEncoder, table: Tensor) -> TextEncoder:
    """Return what gives the mean word vector under the target that `words` has the square root of."""
    name = words.name.replace("words", "vectors")
    return TextEncoder(name, _digest(name, words.fingerprint), lambda texts, _: words(texts).square() @ table)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def main() -> None:
    """Score every kind of target, and the untrained backbone beside them, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone")
    parser.add_argument("corpus")
    parser.add_argument("--suite", type=Path)
    parser.add_argument("--suite-tokens", type=int, default=100_000)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    chosen = parser.parse_args()
    quiet_libraries()
    recipe = Recipe(BackboneSettings(chosen.backbone, max_length=128)).with_settings(chosen.settings)
    reporter, console, table = TerminalReporter(), Console(width=160), None
    tasks = sample_suite(read_suite(chosen.suite), chosen.suite_tokens) if chosen.suite else []
    embedder = load_embedder(recipe.backbone)
    head = load_head(embedder, recipe.backbone.name)
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer_of(embedder), recipe.vocabulary)
    vectors = word_table(head, vocabulary, torch.ones(vocabulary.size))
    backbone = Backbone(recipe.backbone, embedder, vocabulary)
    with tempfile.TemporaryDirectory() as cache, temporary_corpus(read_documents([chosen.corpus])) as corpus:
        queries, passages = list(corpus.held_out["query"]), list(corpus.held_out["passage"])
        sample = sample_texts(corpus.passages, seed=0)
        encoders: list[tuple[TextEncoder, Postprocessing]] = [(encoder_of(embedder, "untrained backbone"), "centred")]
        for kind in get_args(ConstructorName):
            constructor = make_constructor(kind, backbone, recipe.targets)
            constructor.fit(corpus.passages)
            words = words_encoder(constructor, vocabulary.size)
            encoders += [(words, "none"), (vectors_encoder(words, vectors), "centred")]
        for encoder, postprocessing in encoders:
            texts = {*sample, *queries, *passages}
            with reporter.progress(encoder.name, len(texts), "texts") as progress:
                encoder(list(texts), progress)
            if postprocessing == "centred":
                encoder = encoder.postprocessed_by(
                    fit_postprocessing(encoder(sample), postprocessing), f"{encoder.name}, centred"
                )
            found = score_suite(encoder, tasks, Path(cache), reporter) if tasks else None
            own = dense_scores(encoder(queries), encoder(passages)).mrr_at_10
            figures = {
                "label-free MRR@10": own,
                **({"Mean (TaskType)": found.mean_task_type, **found.types} if found else {}),
            }
            if table is None:
                table = Table("", *figures)
            table.add_row(encoder.name, *(f"{value:.1f}" for value in figures.values()))
    if table is not None:
        console.print(table)


if __name__ == "__main__":
    main()
