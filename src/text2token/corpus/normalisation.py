r"""What is done to a text before it is cut into tokens: the same for corpora, for indexes and inside `tokenizer.json`.

Training sees texts in NFC, with Unix line ends, without outer whitespace. Whoever embeds with the exported folder must see
the same, whatever program reads it, so these steps stand in front of the tokenizer's normaliser. Three difficulties.

- tokenizers cuts a text at added tokens *before* it normalises the pieces: a control token ("</s>") spelt in a text would
  cut it, and each piece would be stripped by itself. So a control token that stands in a text is read as that text.
- Other engines of regular expressions know no `\A`, no `\z` and no possessive quantifiers: hence lookarounds. The one
  before the last run of whitespace keeps the cost linear.
- Python's Unicode tables are newer than those of tokenizers, so `normalise` runs the steps of tokenizers.
"""

import json
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# what str.strip() strips, in escapes that every engine knows
_SPACE = r"[\u0009-\u000D\u001C-\u0020\u0085\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000]"
_OUTER_SPACE = rf"(?<![\s\S]){_SPACE}+|(?<!{_SPACE}){_SPACE}+(?![\s\S])"
# Thai to Lao, Tibetan, Myanmar, Khmer, kana, Chinese characters: scripts that set no spaces between words
_UNSPACED = r"[\u0E00-\u0FFF\u1000-\u109F\u1780-\u17FF\u3040-\u30FF\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF\uFF66-\uFF9F]"
_STEPS = [
    normalizers.NFC(),
    normalizers.Replace(Regex("\r\n?"), "\n"),
    normalizers.Replace(Regex(_OUTER_SPACE), ""),
]
_NORMALISER = normalizers.Sequence(_STEPS)
_PREFIX_SPACE = [normalizers.Prepend(" "), normalizers.Replace(Regex(rf"(?<![\s\S]) (?={_UNSPACED})"), "")]
_WORDS = (
    "time",
    "house",
    "water",
    "yeast",
)  # to see whether a tokenizer distinguishes a word at the beginning from one within


def normalise(text: str) -> str:
    """Return `text` in NFC, with Unix line ends, without outer whitespace; lone surrogates become U+FFFD."""
    if text.isascii():
        return text.replace("\r\n", "\n").replace("\r", "\n").strip()
    return str(_NORMALISER.normalize_str(whole_characters(text)))


def whole_characters(text: str) -> str:
    """Return `text` with U+FFFD for every half of a surrogate pair: JSON can spell them, no tokenizer or file holds them."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_as_text(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Let `tokenizer` (fast), in place, normalise all that it reads, and read control tokens spelt in a text as that text.

    Control tokens are the special ones, and those that it would match in a text before that is normalised ("<think>",
    runs of spaces). Ids stay; words that somebody has added to the vocabulary are found as before. Twice is as once.
    """
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([*_STEPS, *own_steps(backend)])
    added = backend.get_added_tokens_decoder().values()
    control = [token.content for token in added if not token.normalized or token.content != normalise(token.content)]
    backend.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in control])
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = True
    backend.encode_special_tokens = True


def read_first_word_as_any(backend: Tokenizer) -> None:
    """Let `backend`, in place, put a space before the first word of a text, where it tells that word from one within.

    For embedders in which "yeast" and "␣yeast" are two vectors. To be called after `read_as_text`.
    """
    before = backend.normalizer
    if not _first_word_is_another(backend):
        return
    backend.normalizer = normalizers.Sequence([*_STEPS, *_PREFIX_SPACE, *own_steps(backend)])
    if _first_word_is_another(backend):
        backend.normalizer = before


def own_steps(backend: Tokenizer) -> list[normalizers.Normalizer]:
    """Return the steps of the normaliser that `backend` had before `read_as_text`."""
    given = backend.normalizer
    if given is None:
        return []
    if not isinstance(given, normalizers.Sequence):
        return [given]
    steps = [given[number] for number in range(len(_listed(given)))]
    return steps[_ours(_listed(given)) :]


def without_ours(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a tokenizer, the content of a `tokenizer.json`, as it was before `read_as_text`."""
    given = state.get("normalizer")
    if given is None or given["type"] != "Sequence" or not (ours := _ours(given["normalizers"])):
        return state
    own = given["normalizers"][ours:]
    return {**state, "normalizer": {**given, "normalizers": own} if len(own) > 1 else next(iter(own), None)}


def control_tokens_as_vocabulary(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a tokenizer without control tokens: their ids are kept in the vocabulary, and no text leads there.

    For readers of `tokenizer.json` alone, which know no `split_special_tokens`. A unigram model is returned unchanged: a
    text would lead to them there.
    """
    vocabulary = state["model"].get("vocab")
    if not isinstance(vocabulary, dict):
        return state
    control = [token for token in state.get("added_tokens") or [] if token["special"]]
    vocabulary = {**vocabulary, **{token["content"]: token["id"] for token in control}}
    kept = [token for token in state.get("added_tokens") or [] if not token["special"]]
    return {**state, "added_tokens": kept, "model": {**state["model"], "vocab": vocabulary}}


def _ours(steps: list[dict[str, Any]]) -> int:
    """Return how many of a normaliser's first steps are those of this module."""
    for ours in ([*_STEPS, *_PREFIX_SPACE], _STEPS):
        if steps[: len(ours)] == _listed(normalizers.Sequence(ours)):
            return len(ours)
    return 0


def _listed(normaliser: normalizers.Sequence) -> list[dict[str, Any]]:
    return list(json.loads(normaliser.__getstate__())["normalizers"])


def _first_word_is_another(backend: Tokenizer) -> bool:
    def ids(text: str) -> list[int]:
        return list(backend.encode(text, add_special_tokens=False).ids)

    before = len(ids(_WORDS[0]))
    return any(ids(f"{_WORDS[0]} {word}")[before:] != ids(word) for word in _WORDS[1:])
