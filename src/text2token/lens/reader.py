"""A reader of embeddings: a direction for every word, learnt once, saved beside the model it reads.

    score(word) = (embedding - mean) · direction(word)

    my-embedder/lens/
      reader.safetensors   {"directions": (words, dimension), "mean": (dimension,), "probe": (texts, dimension)}
      tokenizer.json       splits a text into words
      reader.json          the words, and how they were learnt

Plain sentence-transformers ignores the folder. Directions of one embedding space mean nothing in another. Hashes of weights
would refuse the same model in another number format, so the reader keeps its model's embeddings of three fixed texts, and
`check` compares them. How directions are learnt: `text2token.lens.fit`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from text2token.errors import ModelError, reason
from text2token.files import atomic_folder
from text2token.lens.pair import Contributions, decompose
from text2token.model.encoder import TextEncoder
from text2token.recipe import VocabularySettings
from text2token.steps import read_card
from text2token.tokens.vocabulary import bare_tokenizer
from text2token.tokens.words import KeyToken, WordSplitter

FOLDER = "lens"
CARD, TENSORS, TOKENIZER = "reader.json", "reader.safetensors", "tokenizer.json"
PROBE = (
    "Wait until the thread has finished.",
    "The price of coffee rose after frost damaged the harvest.",
    "A girl plays the guitar while her cat sleeps on the sofa.",
)
SAME_MODEL = 0.9  # cosine; bfloat16 against float32 gives more, another model's space about 0
WORDS_OF_A_PAIR = 32  # of each text, its top decoded tokens


def _without_surface(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without `surface`, which was one once, and which no reader depends on."""
    return {name: value for name, value in settings.items() if name != "surface"}


@dataclass(frozen=True)
class ReaderCard:
    """How a reader was learnt.

    `reads`: "tf-idf", the text's words and their weights, "head", what a language-model head decodes, or "both". `source`
    names the texts and the head. `max_tokens`: how much of a text the model sees. `made_from`: a digest of all of that.
    """

    reads: Literal["tf-idf", "head", "both"]
    source: str
    texts: int
    max_tokens: int
    vocabulary: Annotated[VocabularySettings, BeforeValidator(_without_surface)]
    tokenizer_fingerprint: str
    made_from: str = ""


@dataclass(frozen=True)
class _Lexicon:
    """What else the card's file holds."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class TokenReader:
    """Reads embeddings of one model: `directions` has shape (words, dimension), `mean` (dimension,); both float32.

    `lexicon` are the words, in the order of the directions; `probe`, shape (texts, dimension), is what the model gave for
    `PROBE`.
    """

    card: ReaderCard
    lexicon: tuple[str, ...]
    directions: Tensor
    mean: Tensor
    probe: Tensor
    tokenizer: PreTrainedTokenizerBase

    def scores(self, embeddings: Tensor) -> Tensor:
        """Return the score of each word for each embedding, shape (texts, words), above the mean of the corpus.

        `embeddings` has shape (texts, dimension), as the model gives them.
        """
        return (embeddings.float() - self.mean) @ self.directions.T

    def words(self, embeddings: Tensor, k: int = 8) -> list[list[KeyToken]]:
        """Return the top `k` decoded tokens of each embedding, strongest first.

        A weight is the tf-idf that the text is expected to have above the corpus' mean; for a head the probability among all
        words; for both the sum of their scores, each in units of its standard deviation over texts and words.
        """
        scores = self.scores(embeddings)
        weights = scores.softmax(-1) if self.card.reads == "head" else scores.clamp(min=0)
        best = torch.topk(weights, min(k, len(self.lexicon)))
        return [
            [KeyToken(self.lexicon[index], weight) for weight, index in zip(row, indices, strict=True)]
            for row, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def contributions(self, a: Tensor, b: Tensor, k: int = 8) -> Contributions:
        """Return the words that make two embeddings similar, each shape (dimension,), with their exact shares of the cosine.

        See `text2token.lens.pair`. The words are chosen among the top decoded tokens of either.
        """
        return self.contributions_to_each(a, b[None], k)[0]

    def contributions_to_each(self, a: Tensor, others: Tensor, k: int = 8) -> list[Contributions]:
        """Return the `contributions` of `a`, shape (dimension,), and each of `others`, shape (texts, dimension).

        All are scored in one product: reading the directions takes longer than multiplying with them.
        """
        scores = self.scores(torch.cat([a[None], others]))
        of_a, *of_others = torch.topk(scores, min(WORDS_OF_A_PAIR, len(self.lexicon))).indices.tolist()
        either = [sorted({*of_a, *most}) for most in of_others]
        return [
            decompose(a, b, self.mean, [self.lexicon[row] for row in rows], self.directions[rows], k)
            for b, rows in zip(others, either, strict=True)
        ]

    def words_in(self, texts: Sequence[str]) -> list[frozenset[str]]:
        """Return the words that stand in each text, as far as the model sees it; a word is cut as the tokenizer does."""
        return self._splitter.words_in(texts, self.card.max_tokens)

    def check(self, encoder: TextEncoder) -> None:
        """Raise `ModelError` unless `encoder` gives the embeddings that this reader was learnt on."""
        found = encoder(PROBE)
        if found.shape[1] != len(self.mean):
            raise ModelError(
                f"{encoder.name}: its embeddings have {found.shape[1]} dimensions, the reader's {len(self.mean)}. {AGAIN}"
            )
        similarity = float((normalize(found.float()) * normalize(self.probe)).sum(1).min())
        if similarity < SAME_MODEL:
            raise ModelError(
                f"{encoder.name}: is not the model that its reader was learnt on (one text has cosine {similarity:.2f}). "
                f"{AGAIN}"
            )

    @cached_property
    def _splitter(self) -> WordSplitter:
        return WordSplitter(self.tokenizer, self.card.vocabulary)


AGAIN = "Learn it anew: text2token lens fit MODEL --corpus FILE"


def save_reader(reader: TokenReader, folder: Path) -> None:
    """Write `reader` to `folder`, all or nothing, in place of one that is there; `open_reader` finds it in MODEL/lens."""
    with atomic_folder(folder, known=(TENSORS, TOKENIZER, CARD)) as unfinished:
        tensors = {"directions": reader.directions.half(), "mean": reader.mean, "probe": reader.probe}
        save_file({name: value.contiguous() for name, value in tensors.items()}, unfinished / TENSORS)
        (unfinished / TOKENIZER).write_text(bare_tokenizer(reader.tokenizer).to_str(), encoding="utf-8")
        card = {**asdict(reader.card), "words": reader.lexicon}
        (unfinished / CARD).write_text(json.dumps(card, ensure_ascii=False, indent=0), encoding="utf-8")


def open_reader(folder: Path | str, encoder: TextEncoder | None = None) -> TokenReader:
    """Return the reader of the embedder in `folder` (its folder `lens`, or itself such a folder).

    With `encoder`, what embeds, it is checked that this is the reader's model. Raises `ModelError` when there is no
    reader, it is damaged or another model's.
    """
    place = Path(folder) / FOLDER if (Path(folder) / FOLDER).is_dir() else Path(folder)
    if not (place / CARD).is_file():
        raise ModelError(f"{folder}: has no reader of its embeddings. {AGAIN}")
    card = read_card(ReaderCard, place / CARD, ModelError, "reader", AGAIN)
    lexicon = read_card(_Lexicon, place / CARD, ModelError, "reader", AGAIN).words
    try:
        tensors = load_file(place / TENSORS)
        tokenizer = as_fast_tokenizer(Tokenizer.from_file(str(place / TOKENIZER)))
        reader = TokenReader(card, lexicon, tensors["directions"].float(), tensors["mean"], tensors["probe"], tokenizer)
        if len(reader.directions) != len(lexicon):
            raise ValueError(f"{len(lexicon)} words and {len(reader.directions)} directions")
    except Exception as error:  # tokenizers and safetensors raise what they like
        raise ModelError(f"{place}: is damaged ({reason(error)}). {AGAIN}") from error
    if encoder is not None:
        reader.check(encoder)
    return reader


def as_fast_tokenizer(tokenizer: Tokenizer | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return `tokenizer` with transformers' interface; a static embedder has the bare one."""
    if isinstance(tokenizer, Tokenizer):
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]
    return tokenizer
