"""Which token ids may be targets, and which id stands for a word.

A language model's vocabulary holds a word several times ("girl", "␣girl", "Girl", "␣Girl") beside much that says nothing
about a text: special tokens, punctuation, byte fragments, function words. A `TargetVocabulary` maps every token id to
the id that represents it in targets, or to `NOT_A_TARGET`. The trap: ids mean nothing without their tokenizer, so the
vocabulary carries a fingerprint of tokenizer and rules that everything built on it must match.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from text2token.errors import BackboneError, RecipeError

REMEMBERED_WORDS = 100_000  # tens of megabytes; four times as many were no faster (LOG.md)
NOT_A_TARGET = -1

Surface = Literal["space", "bare", "both", "as_is"]


@dataclass(frozen=True)
class VocabularySettings:
    """Rules of a target vocabulary.

    `stop_words`: ISO 639-1 codes of the languages whose stop words are left out, joined by "+" ("en", "en+de"), or
    "off". `surface`: which form stands for a word: `space` ("␣girl", how a decoder writes it inside a sentence), `bare`
    ("girl", after an opening quotation mark), `both` (half the weight each), `as_is` (no merging; for ablation).
    """

    stop_words: str = "en"
    surface: Surface = "both"


@dataclass(frozen=True)
class TokenForm:
    """A token as text: its characters, and whether it starts a word."""

    text: str
    starts_word: bool


@dataclass(frozen=True)
class TargetVocabulary:
    """The target side of one tokenizer.

    `representatives` has shape (vocabulary size, 2): the ids that stand for each token id in targets, the second
    `NOT_A_TARGET` unless `surface="both"` found two forms; both `NOT_A_TARGET` for ids that may not be targets.
    `words` are the merged spellings by token id, for people.
    """

    representatives: NDArray[np.int32]
    words: tuple[str, ...]
    special_ids: frozenset[int]
    settings: VocabularySettings
    tokenizer_fingerprint: str

    @classmethod
    def from_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase, settings: VocabularySettings | None = None
    ) -> "TargetVocabulary":
        """Build the target vocabulary of a fast tokenizer (byte-level BPE, SentencePiece or WordPiece).

        Left out: special and added tokens, fragments of a UTF-8 character, what has no letter or digit, single
        characters of scripts with upper and lower case, and single digits (pieces of words, not words; a single Chinese
        character is a word), stop words. Merged: spellings equal after NFKC, case folding and without the leading space.
        """
        settings = settings or VocabularySettings()
        forms, special_ids = token_forms(tokenizer)
        stop_words = _stop_words(settings.stop_words)
        words = tuple(_word(form) for form in forms)
        groups: dict[str, list[int]] = {}
        for token_id, word in enumerate(words):
            if word and token_id not in special_ids and word not in stop_words:
                groups.setdefault(word, []).append(token_id)
        representatives = np.full((len(forms), 2), NOT_A_TARGET, dtype=np.int32)
        for word, members in groups.items():
            if settings.surface == "as_is":
                representatives[members, 0] = members
            else:
                chosen = _representatives(word, members, forms, settings.surface)
                representatives[np.ix_(members, range(len(chosen)))] = chosen
        return cls(representatives, words, special_ids, settings, tokenizer_fingerprint(tokenizer))

    @property
    def size(self) -> int:
        """The number of token ids of the tokenizer, targets or not."""
        return len(self.words)

    @cached_property
    def target_ids(self) -> NDArray[np.int32]:
        """The ids that occur in targets, ascending."""
        return np.unique(self.representatives[self.representatives != NOT_A_TARGET])

    @cached_property
    def form_shares(self) -> NDArray[np.float32]:
        """Each id's share of its word's weight, shape (size,): a half where two forms stand for the word, else 1."""
        shares = np.ones(self.size, dtype=np.float32)
        pairs = self.representatives[self.representatives[:, 1] != NOT_A_TARGET]
        shares[pairs.ravel()] = 0.5
        return shares

    @cached_property
    def fingerprint(self) -> str:
        """A stable name (16 hex digits) of tokenizer and rules: equal fingerprints, interchangeable targets."""
        described = json.dumps([self.tokenizer_fingerprint, asdict(self.settings)], sort_keys=True)
        content = described.encode() + self.representatives.tobytes()  # stop-word lists may change under the same name
        return hashlib.sha256(content).hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hex digits of the tokenizer's ids and merges; prompts, padding and truncation do not change it."""
    state = json.loads(_backend(tokenizer).to_str())
    kept = {key: state.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
    kept["added_tokens"] = [[token["id"], token["content"]] for token in kept["added_tokens"] or []]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, prompt: bool = False) -> list[list[int]]:
    """Return each text's token ids, neither padded nor truncated, by the Rust tokenizer's batch call.

    With `prompt`, what the post-processor puts around a text is included.
    """
    backend = _backend(tokenizer)
    backend.no_padding()  # transformers leaves its last call's settings in the backend
    backend.no_truncation()
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=prompt)]


def remember_more_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a byte-pair tokenizer keep the pieces of more words than its default of ten thousand; ids stay the same.

    1.4 times as fast on a corpus of a few million words (LOG.md). Where this tokenizer has no such setting, nothing happens.
    """
    resize = getattr(_backend(tokenizer).model, "_resize_cache", None)
    if resize is not None:
        resize(REMEMBERED_WORDS)


def token_forms(tokenizer: PreTrainedTokenizerBase) -> tuple[list[TokenForm], frozenset[int]]:
    """Return every token id's text, and the ids that are special, added or unassigned.

    Decoding one id at a time would lose the leading space of SentencePiece and the "##" of WordPiece, so the tokenizer's
    own spelling is read instead: the byte alphabet, "▁" or "##". A fragment of a UTF-8 character has empty text.
    """
    backend = _backend(tokenizer)
    state = json.loads(backend.to_str())
    added = {token["id"] for token in state.get("added_tokens") or []} | set(tokenizer.all_special_ids)
    spelling = _spelling(state)
    size = max(backend.get_vocab().values()) + 1
    forms = [TokenForm("", False)] * size
    unassigned = set(range(size))
    for token, token_id in backend.get_vocab().items():
        unassigned.discard(token_id)
        if token_id not in added:
            forms[token_id] = _form(token, spelling)
    return forms, frozenset(added | unassigned)


def _backend(tokenizer: PreTrainedTokenizerBase):  # type: ignore[no-untyped-def]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BackboneError(f"{tokenizer.name_or_path}: only fast tokenizers (tokenizer.json) are supported")
    return backend


def _spelling(state: dict[str, object]) -> Literal["bytes", "sentencepiece", "wordpiece"]:
    parts = json.dumps([state.get("pre_tokenizer"), state.get("decoder")])
    model = state.get("model")
    if "ByteLevel" in parts:
        return "bytes"
    if isinstance(model, dict) and model.get("type") == "WordPiece":
        return "wordpiece"
    return "sentencepiece"


def _form(token: str, spelling: str) -> TokenForm:
    if spelling == "bytes":
        try:
            text = bytes(_byte_alphabet()[character] for character in token).decode("utf-8")
        except (KeyError, UnicodeDecodeError):
            return TokenForm("", False)
        return TokenForm(text.strip(), text[:1].isspace())
    if spelling == "wordpiece":
        return TokenForm(token.removeprefix("##"), not token.startswith("##"))
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return TokenForm("", False)
    return TokenForm(token.replace("▁", " ").strip(), token.startswith("▁"))


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: printable Latin-1 for itself, the rest from U+0100 upwards."""
    if not _BYTE_ALPHABET:
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        _BYTE_ALPHABET.update({chr(byte): byte for byte in printable})
        _BYTE_ALPHABET.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return _BYTE_ALPHABET


_BYTE_ALPHABET: dict[str, int] = {}


def _word(form: TokenForm) -> str:
    """Return the merged spelling, or "" for what says nothing by itself."""
    word = unicodedata.normalize("NFKC", form.text).casefold()
    if not any(character.isalnum() for character in word) or "\ufffd" in word:
        return ""
    if len(word) == 1 and (word.isdigit() or word != word.upper()):
        return ""
    return word


def _stop_words(languages: str) -> frozenset[str]:
    if languages == "off":
        return frozenset()
    from stop_words import LANGUAGE_MAPPING, get_stop_words

    found: set[str] = set()
    for language in languages.split("+"):
        if language not in LANGUAGE_MAPPING:
            known = ", ".join(sorted(LANGUAGE_MAPPING))
            raise RecipeError(f"no stop words for language {language!r}; there are {known}, or off")
        for phrase in get_stop_words(language):
            # "don't" reaches the model as pieces, so its pieces are stop words too
            found.update(unicodedata.normalize("NFKC", phrase).casefold().replace("’", "'").split("'"))
            found.add(phrase.casefold())
    return frozenset(found)


def _representatives(word: str, members: Iterable[int], forms: list[TokenForm], surface: Surface) -> list[int]:
    """Return the one or two ids that stand for `word`: the plain spelling before capitals, the wanted form first."""

    def preference(token_id: int) -> tuple[bool, int]:
        return (forms[token_id].text != word, token_id)  # BPE ids ascend from frequent to rare

    inside = sorted((i for i in members if forms[i].starts_word), key=preference)
    bare = sorted((i for i in members if not forms[i].starts_word), key=preference)
    if surface == "both":
        return inside[:1] + bare[:1]
    preferred, other = (inside, bare) if surface == "space" else (bare, inside)
    return (preferred or other)[:1]
