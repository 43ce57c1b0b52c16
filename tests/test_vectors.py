"""Vectors on disk are those of their texts, in order, and a stopped run goes on to the same files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from text2token.corpus.documents import Document
from text2token.errors import CorpusError, OutputError
from text2token.export.vectors import embed_corpus, read_card, read_vectors
from text2token.model.encoder import TextEncoder
from text2token.progress import Progress


class Lengths:
    """Embeds a text as its length; breaks off when told."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.fail_after = fail_after
        self.seen = 0

    def __call__(self, texts: Sequence[str], progress: Progress | None) -> Tensor:
        self.seen += len(texts)
        if self.fail_after is not None and self.seen > self.fail_after:
            raise KeyboardInterrupt
        if progress:
            progress(len(texts))
        return torch.tensor([[float(len(text)), 1.0] for text in texts])


class Other(Lengths):
    """Another model of as many dimensions."""

    def __call__(self, texts: Sequence[str], progress: Progress | None) -> Tensor:
        return super().__call__(texts, progress).flip(1)


def documents(count: int = 25) -> Iterator[Document]:
    for number in range(count):
        yield Document(body="x" * (number % 7 + 1) if number % 5 else " ", place=f"docs:{number}")


def encoder(embed: Lengths | None = None, fingerprint: str = "a") -> TextEncoder:
    return TextEncoder("lengths", fingerprint, embed or Lengths())


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rows_stand_in_their_order_beside_their_vectors(tmp_path: Path) -> None:
    card = embed_corpus(encoder(), documents(), tmp_path / "out", rows_per_shard=8)
    assert (card.rows, card.dimension) == (20, 2)
    assert read_card(tmp_path / "out") == card
    table = pa.Table.from_batches(read_vectors(tmp_path / "out"))
    assert table["place"].to_pylist() == [document.place for document in documents() if document.text.strip()]
    vectors = np.stack(table["vector"].to_pylist())
    assert vectors[:, 0].tolist() == [len(text) for text in table["text"].to_pylist()]
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 3


@pytest.mark.parametrize("stop", [1, 9, 17])
def test_a_stopped_run_goes_on_to_the_same_files(tmp_path: Path, stop: int) -> None:
    embed_corpus(encoder(), documents(), tmp_path / "whole", rows_per_shard=8)
    with pytest.raises(KeyboardInterrupt):
        embed_corpus(encoder(Lengths(stop)), documents(), tmp_path / "parts", rows_per_shard=8)
    counting = Lengths()
    embed_corpus(encoder(counting), documents(), tmp_path / "parts", rows_per_shard=8)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert counting.seen <= 1 + 20 - (stop - 1) // 8 * 8  # finished shards are not embedded again


def test_vectors_of_another_model_are_never_mixed_in(tmp_path: Path) -> None:
    embed_corpus(encoder(), documents(), tmp_path / "out")
    with pytest.raises(OutputError, match="vectors of another model"):
        embed_corpus(encoder(Other(), fingerprint="b"), documents(), tmp_path / "out")
    (tmp_path / "out" / "card.json").write_text("{", encoding="utf-8")
    with pytest.raises(OutputError, match="holds no vectors that can be read"):
        embed_corpus(encoder(), documents(), tmp_path / "out")


def test_vectors_under_another_releases_fingerprint_are_gone_on_with(tmp_path: Path) -> None:
    embed_corpus(encoder(), documents(), tmp_path / "whole", rows_per_shard=8)
    with pytest.raises(KeyboardInterrupt):
        embed_corpus(encoder(Lengths(fail_after=12), fingerprint="b"), documents(), tmp_path / "out", rows_per_shard=8)
    embed_corpus(encoder(), documents(), tmp_path / "out", rows_per_shard=8)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_corpus_without_text_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no documents"):
        embed_corpus(encoder(), documents(1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_remembered(tmp_path: Path) -> None:
    one = encoder()
    embed_corpus(one, documents(), tmp_path / "out")
    assert one.memory == {}


def test_vectors_of_a_corpus_that_has_changed_are_never_mixed(tmp_path: Path) -> None:
    def lines(text: str) -> list[Document]:
        return [Document(body=letter, place=str(number)) for number, letter in enumerate(text)]

    with pytest.raises(KeyboardInterrupt):
        embed_corpus(encoder(Lengths(fail_after=3)), lines("abcde"), tmp_path / "out", rows_per_shard=2)
    for changed in ("zabcd", "abXde"[:1]):
        with pytest.raises(OutputError, match="holds vectors of other texts: the input has changed since"):
            embed_corpus(encoder(), lines(changed), tmp_path / "out", rows_per_shard=2)
    embed_corpus(encoder(), lines("abcde"), tmp_path / "whole", rows_per_shard=2)
    with pytest.raises(OutputError, match="holds vectors of other texts"):
        embed_corpus(encoder(), lines("ab"), tmp_path / "whole", rows_per_shard=2)


@pytest.mark.parametrize("number", [0, 1])
def test_a_damaged_shard_is_told_and_made_again_once_it_is_deleted(tmp_path: Path, number: int) -> None:
    embed_corpus(encoder(), documents(), tmp_path / "v", rows_per_shard=10)
    whole, shard = files(tmp_path / "v"), tmp_path / "v" / f"vectors-0000{number}.parquet"
    for damaged in (b"", whole[shard.name][:-100], whole[shard.name][:100] + b"x" * 300 + whole[shard.name][-8:]):
        shard.write_bytes(damaged)
        with pytest.raises(OutputError, match=rf"{shard.name}: cannot be read \(.*\)\. Delete it; the same command"):
            embed_corpus(encoder(), documents(), tmp_path / "v", rows_per_shard=10)
    shard.unlink()
    embed_corpus(encoder(), documents(), tmp_path / "v", rows_per_shard=10)
    assert files(tmp_path / "v") == whole
