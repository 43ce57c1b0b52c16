"""Which token ids may be targets, and which id stands for a word.

A language model's vocabulary holds a word several times ("girl", "␣girl", "Girl", "␣Girl") beside much that carries no
meaning: special tokens, punctuation, byte fragments, function words. A `TargetVocabulary` maps every token id to
the id that represents it in targets, or to `NOT_A_TARGET`. Ids mean nothing without their tokenizer, so the
vocabulary carries a fingerprint of tokenizer and rules that everything built on it must match.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from text2token.corpus.normalisation import control_tokens_as_vocabulary, without_ours
from text2token.errors import ModelError
from text2token.recipe import VocabularySettings

REMEMBERED_WORDS = 100_000  # of which a tokenizer keeps the pieces: tens of megabytes
NOT_A_TARGET = -1


# Scripts in which words are not set apart by spaces, by the beginning of their characters' Unicode names.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
# Scripts of which one character may be a word: a letter of an alphabet is a piece of one.
WORD_CHARACTERS = ("CJK UNIFIED", "CJK COMPATIBILITY", "HANGUL SYLLABLE")
# What writers put in or leave out at will: Arabic vowel signs, tatweel and the hamza of alif; Hebrew points; the nukta and
# the two nasal signs of Devanagari; the dot that case folding leaves of the Turkish İ. After Lucene's normalisers.
AT_WILL = dict.fromkeys((*range(1611, 1622), 1648, 1600, *range(1425, 1470), 1471, 2364, 775))
AT_WILL |= {**dict.fromkeys(map(ord, "أإآٱ"), "ا"), ord("ँ"): "ं"}
# The pinned lists have no Chinese; function words, simplified and traditional.
CHINESE_STOP_WORDS = """
    的 了 着 著 过 過 地 得 在 是 有 不 没 沒 没有 沒有 也 都 就 才 又 再 还 還 还是 還是 很 太 更 最 和 与 與 或 或者
    及 以及 并 並 并且 並且 而 而且 但 但是 却 卻 因为 因為 所以 因此 如果 虽然 雖然 把 被 给 給 对 對 对于 對於 关于
    關於 从 從 到 向 往 于 於 以 为 為 为了 為了 由 由于 由於 等 等等 吗 嗎 呢 吧 啊 呀 嘛 其 之 所 者 会 會 能 可
    可以 要 一 个 個 一个 一個 一些 我 你 您 他 她 它 们 們 我们 我們 你们 你們 他们 他們 她们 她們 它们 它們 这 這 那
    这个 這個 那个 那個 这些 這些 那些 这里 這裡 那里 那裡 什么 什麼 自己
"""


@dataclass(frozen=True)
class TokenForm:
    """A token as text: its characters, and whether it starts a word."""

    text: str
    starts_word: bool


@dataclass(frozen=True)
class TargetVocabulary:
    """The target side of one tokenizer.

    `representatives` has shape (vocabulary size, 2): the ids that stand for each token id in targets, the second
    `NOT_A_TARGET` unless the word is spelt with a space before it and without; both `NOT_A_TARGET` for ids that may not be
    targets.
    `words` are the merged spellings by token id, for people; `whole_words` are those that are not only pieces of words
    ("ospital", where "Hospital" begins a text): a word begins with one of their tokens, or their script sets no spaces.
    `special_ids` are no text by themselves: special, added and unassigned ids, and fragments of a character; they are never
    in a target, not even of a text that has no other.
    """

    representatives: NDArray[np.int32]
    words: tuple[str, ...]
    whole_words: frozenset[str]
    special_ids: frozenset[int]
    settings: VocabularySettings
    tokenizer_fingerprint: str

    @classmethod
    def from_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase, settings: VocabularySettings | None = None
    ) -> "TargetVocabulary":
        """Build the target vocabulary of a fast tokenizer (byte-level BPE, SentencePiece or WordPiece).

        Left out: special and added tokens, fragments of a UTF-8 character, what begins with a sign that goes with the
        letter before it, what has no letter or digit, single letters and digits (pieces of words; but one Chinese character
        or Korean syllable may be a word), stop words. Merged: spellings that are equal when `folded`, with a space before
        or not.
        """
        settings = settings or VocabularySettings()
        forms, special_ids = token_forms(tokenizer)
        stop_words = stop_words_of(settings.stop_words)
        words = tuple(_word(form) for form in forms)
        groups: dict[str, list[int]] = {}
        for token_id, word in enumerate(words):
            if word and token_id not in special_ids and word not in stop_words:
                groups.setdefault(word, []).append(token_id)
        representatives = np.full((len(forms), 2), NOT_A_TARGET, dtype=np.int32)
        for word, members in groups.items():
            chosen = _representatives(word, members, forms)
            representatives[np.ix_(members, range(len(chosen)))] = chosen
        whole_words = frozenset(
            word
            for word, members in groups.items()
            if is_unspaced(word) or any(forms[token_id].starts_word for token_id in members)
        )
        return cls(representatives, words, whole_words, special_ids, settings, tokenizer_fingerprint(tokenizer))

    @property
    def size(self) -> int:
        """The number of token ids of the tokenizer, targets or not."""
        return len(self.words)

    def with_one_form(self) -> "TargetVocabulary":
        """Return the vocabulary in which one id stands for all spellings of a word."""
        representatives = self.representatives.copy()
        representatives[:, 1] = NOT_A_TARGET
        return replace(self, representatives=representatives)

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
        rules = asdict(self.settings) | {"surface": "both"}  # once a setting: targets made then have this name
        described = json.dumps([self.tokenizer_fingerprint, rules], sort_keys=True)
        content = described.encode() + self.representatives.tobytes()  # stop-word lists may change under the same name
        return hashlib.sha256(content).hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hex digits of the tokenizer's ids and merges.

    Prompts, padding and truncation do not change it, nor does what `read_as_text` adds: targets are of texts that are
    normalised already.
    """
    state = without_ours(json.loads(_backend(tokenizer).to_str()))
    kept = {key: state.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
    kept["added_tokens"] = [[token["id"], token["content"]] for token in kept["added_tokens"] or []]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, prompt: bool = False) -> list[list[int]]:
    """Return each text's token ids, neither padded nor truncated, by the Rust tokenizer's batch call.

    With `prompt`, what the post-processor puts around a text is included.
    """
    backend = _backend(tokenizer)
    backend.no_padding()  # transformers leaves its last call's settings in the backend, and sets this one at each call
    backend.no_truncation()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=prompt)]


def bare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return a copy of the Rust tokenizer inside that gives the same tokens by itself, without padding and truncation."""
    state = json.loads(_backend(tokenizer).to_str())
    if tokenizer.split_special_tokens:
        state = control_tokens_as_vocabulary(state)
    return Tokenizer.from_str(json.dumps({**state, "padding": None, "truncation": None}))


def seen_parts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[str]:
    """Return each text up to the end of its first `max_tokens` tokens."""
    backend = _backend(tokenizer)
    backend.no_padding()
    backend.no_truncation()
    encodings = backend.encode_batch(list(texts), add_special_tokens=False)
    ends = [one.offsets[max_tokens - 1][1] if len(one.ids) > max_tokens else None for one in encodings]
    return [text[:end] for text, end in zip(texts, ends, strict=True)]


def tokenised_ahead(
    tokenizer: PreTrainedTokenizerBase, batches: Iterable[Sequence[str]]
) -> Iterator[tuple[Sequence[str], list[list[int]]]]:
    """Yield each batch of texts with its token ids, while the next one is tokenised in a thread beside."""
    with ThreadPoolExecutor(1) as thread:
        waiting: tuple[Sequence[str], Future[list[list[int]]]] | None = None
        for texts in batches:
            coming = texts, thread.submit(tokenise, tokenizer, texts)
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting:
            yield waiting[0], waiting[1].result()


def remember_more_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a byte-pair tokenizer keep the pieces of more words than its default of ten thousand; ids stay the same.

    It is faster so on a corpus of millions of words. Where this tokenizer has no such setting, nothing happens.
    """
    resize = getattr(_backend(tokenizer).model, "_resize_cache", None)
    if resize is not None:
        resize(REMEMBERED_WORDS)


def token_forms(tokenizer: PreTrainedTokenizerBase) -> tuple[list[TokenForm], frozenset[int]]:
    """Return every token id's text, and the ids that are no text: special, added, unassigned, fragments of a character.

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
    fragments = {token_id for token_id, form in enumerate(forms) if not (form.text or form.starts_word)}
    return forms, frozenset(added | unassigned | fragments)


def folded(text: str) -> str:
    """Return the spelling that stands for all spellings of a word: compatible forms, case and signs set at will are one."""
    text = unicodedata.normalize("NFKC", text).casefold().translate(AT_WILL)
    return "".join(character for character in text if unicodedata.category(character) != "Cf")  # joiners, soft hyphens


def is_unspaced(word: str) -> bool:
    """Say whether a word is of a script that sets no spaces between words, so that a token of it may be a whole word."""
    return unicodedata.name(word[:1] or " ", "").startswith(UNSPACED)


def is_of_a_word(character: str) -> bool:
    """Say whether a character is a letter, a digit or a sign on a letter; of none ("") False."""
    return character.isalnum() or unicodedata.category(character or " ").startswith("M")


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"{tokenizer.name_or_path}: only fast tokenizers (tokenizer.json) are supported")
    return cast(Tokenizer, backend)


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
    """Return the merged spelling, or "" for what means nothing by itself."""
    word = folded(form.text)
    if not any(character.isalnum() for character in word) or "\ufffd" in word:
        return ""
    if unicodedata.category(word[0]).startswith("M"):  # a sign without its letter, cut off by the tokenizer
        return ""
    alone = len(word) == 1 or len(form.text) == 1  # "ß" is folded to "ss"
    return "" if alone and not unicodedata.name(word[0], "").startswith(WORD_CHARACTERS) else word


def stop_words_of(languages: str) -> frozenset[str]:
    """Return the stop words of `VocabularySettings.stop_words`, folded."""
    if languages == "off":
        return frozenset()
    from stop_words import get_stop_words

    found: set[str] = set()
    for language in languages.split("+"):
        if language == "zh":
            found.update(CHINESE_STOP_WORDS.split())
            continue
        for phrase in get_stop_words(language):
            # "don't" reaches the model as pieces, so its pieces are stop words too
            found.update(folded(phrase).replace("’", "'").split("'"))
            found.add(folded(phrase))
    return frozenset(found)


def _representatives(word: str, members: Iterable[int], forms: list[TokenForm]) -> list[int]:
    """Return the one or two ids that stand for `word`: inside a sentence and at its beginning, plain before capitals."""

    def preference(token_id: int) -> tuple[bool, int]:
        return (forms[token_id].text != word, token_id)  # BPE ids ascend from frequent to rare

    inside = sorted((i for i in members if forms[i].starts_word), key=preference)
    bare = sorted((i for i in members if not forms[i].starts_word), key=preference)
    return inside[:1] + bare[:1]
