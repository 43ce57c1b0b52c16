"""Targets on disk: Parquet shards and a card of how they were made, which refuses wrong use.

    targets/
      targets-00000.parquet   {"text": string, "token_ids": list<int32>, "weights": list<float32>}
      card.json               constructor, settings, fingerprints, counts, checksums

Targets are numbers, and under another tokenizer they are other words. So `open_targets` compares
the fingerprint before anything is trained, and every shard's checksum, because a shard cut short is still a table.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets import config as datasets_config
from numpy.typing import NDArray

from text2token import steps
from text2token.errors import TargetMismatch
from text2token.files import atomic_folder, writing
from text2token.shards import Shard, described, sha256_of, shards_in, unfinished_beside
from text2token.steps import digest, write_card
from text2token.tokens.vocabulary import TargetVocabulary

FORMAT_VERSION = 1
SIZED_TEXTS = 10_000
WHOLE = 0.999
CARD, SHARDS = "card.json", "targets"
# for each text its token ids and their weights, positive and summing to 1
SCHEMA = pa.schema([("text", pa.large_string()), ("token_ids", pa.list_(pa.int32())), ("weights", pa.list_(pa.float32()))])


@dataclass(frozen=True)
class TargetSizes:
    """How many tokens the targets have.

    Quartiles of all tokens of a target, and of the largest that together hold half of its mass, over an even sample of
    `SIZED_TEXTS`. `single`: texts of which one token holds `WHOLE` of the mass. `most` tokens are in any target, `with_most`
    texts have so many: where a constructor keeps no more than that, these were cut off.
    """

    tokens: tuple[float, float, float]
    half_of_mass: tuple[float, float, float]
    single: int
    most: int
    with_most: int


@dataclass(frozen=True)
class TargetCard:
    """How a folder of targets was made. `dropped` counts texts for which no target could be built."""

    constructor: str
    settings: dict[str, Any]
    tokenizer: str
    vocabulary_size: int
    vocabulary_fingerprint: str
    vocabulary_settings: dict[str, Any]
    texts: int
    dropped: int
    shards: list[Shard] = field(default_factory=list)
    version: int = FORMAT_VERSION
    sizes: TargetSizes | None = None

    @classmethod
    def of(
        cls, constructor: str, settings: dict[str, Any], tokenizer: str, vocabulary: TargetVocabulary, texts: int
    ) -> "TargetCard":
        """Return the card of targets that are yet to be made of so many texts; `tokenizer` is whose tokens are meant."""
        rules = asdict(vocabulary.settings)
        return cls(constructor, settings, tokenizer, vocabulary.size, vocabulary.fingerprint, rules, texts, dropped=0)


def write_targets(folder: Path, card: TargetCard, texts: str, write: Callable[[Path], object]) -> TargetCard:
    """Let `write` put shards into a folder, move them to `folder` with their card, and return it.

    `card` counts in `texts` how many are read. Finished shards wait in FOLDER.unfinished, and the same call finds them
    there: same `texts` (a digest), same settings, same vocabulary. What else is found there is deleted.
    """
    with unfinished_beside(folder, digest(card, texts)) as waiting:
        write(waiting)
        with atomic_folder(folder) as complete:
            for shard in shards_in(waiting, SHARDS):
                shard.rename(complete / shard.name)
            return _finish(complete, card)


def read_card(folder: Path) -> TargetCard:
    """Return the card of a store; raise `TargetMismatch` where there is none or it is not readable."""
    remedy = _remedy(folder) if (folder / CARD).exists() else "Build them: text2token targets"
    card = steps.read_card(TargetCard, folder / CARD, TargetMismatch, "targets", remedy)
    if card.version != FORMAT_VERSION:
        raise TargetMismatch(
            f"{folder}: written in format {card.version}, this is format {FORMAT_VERSION}. {_remedy(folder)}"
        )
    return card


def open_targets(folder: Path, vocabulary: TargetVocabulary, cache: Path | None = None) -> Dataset:
    """Return the stored targets as a memory-mapped dataset of `text`, `token_ids`, `weights`.

    Raises `TargetMismatch` when they were made with another tokenizer, other rules or another vocabulary size, or when a
    shard is missing, cut short or altered. `cache` is where the memory-mapped copy goes (default: that of `datasets`).
    """
    card = read_card(folder)
    if card.vocabulary_size != vocabulary.size:
        raise TargetMismatch(
            f"{folder} was built for a vocabulary of {card.vocabulary_size:,} tokens ({card.tokenizer}); "
            f"this model has {vocabulary.size:,}. {_remedy(folder)}"
        )
    if card.vocabulary_fingerprint != vocabulary.fingerprint:
        differing = [
            f"{key} {card.vocabulary_settings.get(key)!r} instead of {value!r}"
            for key, value in asdict(vocabulary.settings).items()
            if card.vocabulary_settings.get(key) != value
        ]
        cause = ", ".join(differing) or f"the tokenizer of {card.tokenizer}, which is not this model's"
        raise TargetMismatch(f"{folder} was built with {cause}. {_remedy(folder)}")
    for shard in card.shards:
        path = folder / Path(shard.file).name  # a name, never a path: a card may not point elsewhere
        if not path.exists():
            raise TargetMismatch(f"{path} is missing. {_remedy(folder)}")
        if sha256_of(path) != shard.sha256:
            raise TargetMismatch(f"{path} was altered or cut short since it was written. {_remedy(folder)}")
    files = [str(folder / Path(shard.file).name) for shard in card.shards]
    cache = cache or Path(datasets_config.HF_DATASETS_CACHE)
    with writing(cache):
        return Dataset.from_parquet(files, cache_dir=str(cache))


def documents_of(targets: Dataset, passages: Dataset) -> NDArray[np.int64]:
    """Return the document that each text of `targets` was cut from; shape (rows,).

    `passages` are what the targets were made of: the same texts in the same order, and more between them.
    """
    remaining = (
        (text, number)
        for batch in passages.iter(10_000)
        for text, number in zip(batch["text"], batch["document"], strict=True)
    )
    texts = (text for batch in targets.iter(10_000) for text in batch["text"])
    return np.fromiter(
        (next(number for other, number in remaining if other == text) for text in texts), dtype=np.int64, count=len(targets)
    )


def _finish(folder: Path, card: TargetCard) -> TargetCard:
    """Write into `folder` the card of the shards that are there, and return it; `card.texts` were read."""
    paths = shards_in(folder, SHARDS)
    shards = described(paths)
    rows = sum(shard.rows for shard in shards)
    if not rows:
        raise TargetMismatch("no text has a single usable token, so there are no targets to train on")
    card = replace(card, texts=rows, dropped=card.texts - rows, shards=shards, sizes=_sizes(paths, rows))
    write_card(card, folder / CARD)
    return card


def _sizes(paths: Sequence[Path], texts: int) -> TargetSizes:
    """Return how many tokens the targets in these shards have; `texts` is their number."""
    counts, largest, halves = [], [], []
    for path in paths:
        lists = pq.read_table(path, columns=["weights"])["weights"].combine_chunks()
        bounds, weights = lists.offsets.to_numpy(), lists.values.to_numpy()
        counts.append(np.diff(bounds))
        largest.append(np.maximum.reduceat(weights, bounds[:-1]))
        for row in range(0, len(lists), -(-texts // SIZED_TEXTS)):
            mass = np.cumsum(np.sort(weights[bounds[row] : bounds[row + 1]])[::-1])
            halves.append(1 + int(np.searchsorted(mass, mass[-1] / 2)))
    tokens = np.concatenate(counts)
    most = int(tokens.max())
    return TargetSizes(
        _quartiles(tokens),
        _quartiles(np.array(halves)),
        single=int((np.concatenate(largest) >= WHOLE).sum()),
        most=most,
        with_most=int((tokens == most).sum()),
    )


def _quartiles(numbers: NDArray[np.int64]) -> tuple[float, float, float]:
    first, second, third = np.quantile(numbers, (0.25, 0.5, 0.75)).tolist()
    return first, second, third


def _remedy(folder: Path) -> str:
    return f"Rebuild: delete {folder} and run the command again"
