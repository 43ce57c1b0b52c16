"""The limit of no layers at all: word vectors taken from the language-model head, where speed is everything.

    text = mean over its tokens of idf(word) · vector(word), whitened, scaled to unit length

with the vectors of `head.word_table`. No training and no forward pass: the head already knows which words are similar, and
the corpus which matter. Whitening is linear, so it is folded into the embeddings, and the result is one stock module.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch.nn.functional import embedding_bag

from text2token.corpus.documents import Document
from text2token.corpus.normalisation import read_first_word_as_any
from text2token.corpus.prepare import temporary_corpus
from text2token.errors import UsageError
from text2token.export.card import static_card
from text2token.export.folder import check_output, export_static
from text2token.model.backbone import NO_LIMIT, load_embedder, tokenizer_of
from text2token.model.head import load_head, word_table
from text2token.model.whitening import fit_postprocessing, sample_texts
from text2token.progress import Reporter, Silent
from text2token.recipe import BackboneSettings, CorpusSettings
from text2token.targets.data_driven import DataDrivenTargets
from text2token.tokens.vocabulary import TargetVocabulary, bare_tokenizer, tokenise


def static_embedder(backbone: BackboneSettings, passages: Dataset, dimensions: int | None = None) -> SentenceTransformer:
    """Return `[StaticEmbedding, Normalize]` made of the backbone's head and the words of `passages` (column `text`).

    Its vectors have the head's dimension, or the first `dimensions` principal ones. Raises `ModelError` when the backbone
    has no head, `UsageError` when it has fewer dimensions than `dimensions`.
    """
    embedder = load_embedder(replace(backbone, prompt="{text}"))
    tokenizer, head = tokenizer_of(embedder), load_head(embedder, backbone.name)
    width = head.weight.shape[1]
    if dimensions is not None and not 0 < dimensions <= width:
        raise UsageError(f"dimensions is {dimensions}; {backbone.name} has {width}")
    read_first_word_as_any(tokenizer.backend_tokenizer)
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer)
    words = DataDrivenTargets(tokenizer, vocabulary, max_tokens=NO_LIMIT).fit(passages)
    table = word_table(head, vocabulary, torch.from_numpy(words.token_weights()))
    sample = [torch.tensor(ids, dtype=torch.long) for ids in tokenise(tokenizer, sample_texts(passages, seed=0)) if ids]
    starts = torch.tensor([0, *map(len, sample[:-1])]).cumsum(0)
    whitening = fit_postprocessing(embedding_bag(torch.cat(sample), table, starts, mode="mean"), strength="full")
    vectors = whitening(table)[:, :dimensions].contiguous()
    return SentenceTransformer(modules=[StaticEmbedding(bare_tokenizer(tokenizer), embedding_weights=vectors), Normalize()])


def build_static(
    backbone: BackboneSettings,
    documents: Iterable[Document],
    folder: Path,
    *,
    dimensions: int | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> SentenceTransformer:
    """Make the static embedder of `documents`, write it to `folder` and return it; `OutputError` when that is taken."""
    check_output(folder, overwrite, backbone.name)
    with temporary_corpus(documents, CorpusSettings(held_out=0)) as corpus:
        (reporter or Silent()).note(f"Corpus: {corpus.summary.sentence()}.")
        model = static_embedder(backbone, corpus.passages, dimensions)
        export_static(model, folder, static_card(backbone.name, corpus.summary.documents), overwrite)
    return model
