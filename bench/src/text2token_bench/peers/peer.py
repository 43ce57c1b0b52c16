"""What every method in a comparison is given, and what it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import nn

from text2token import BackboneSettings
from text2token_bench.inside import (
    Reporter,
    Silent,
    TextEncoder,
    encoder_of,
    merge_lora,
    resolve_dtype,
    sample_texts,
    transformer_of,
)
from text2token_bench.rows import Family

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Workshop:
    """The same for all: a backbone, passages (`text`, `document`), and how many tokens training may process.

    `folder` takes what a peer writes while it works and is deleted afterwards; `reporter` shows progress.
    """

    backbone: BackboneSettings
    passages: Dataset
    max_tokens: int
    seed: int
    folder: Path
    reporter: Reporter = field(default_factory=Silent)

    def backbone_with(self, **changes: Any) -> BackboneSettings:
        """Return the backbone's settings with another prompt, pooling or attention."""
        return replace(self.backbone, **changes)

    def sample(self) -> list[str]:
        """Return the passages from which means and whitenings are learnt, the same for every peer with this seed."""
        return sample_texts(self.passages, self.seed)


class SearchOnly(Protocol):
    """A method that ranks documents and has no vectors, such as BM25."""

    name: str
    mteb_model: Any

    def similarities(self, queries: list[str], passages: list[str]) -> Any:
        """Return scores of shape (queries, passages)."""


@dataclass(frozen=True)
class Built:
    """What a peer made: an encoder, or a searcher, and the tokens that training processed, repetitions counted."""

    result: TextEncoder | SearchOnly
    tokens: int = 0
    embedder: SentenceTransformer | None = None


@dataclass(frozen=True)
class Peer:
    """A method. `candidates` are the settings it may choose from on the development tasks, the published ones first.

    `seeded` is false where nothing is random, so that one run says it all.
    """

    name: str
    family: Family
    build: Callable[[Workshop, Settings], Built]
    candidates: tuple[Settings, ...] = ({},)
    seeded: bool = False


def finished(workshop: Workshop, embedder: SentenceTransformer, name: str, tokens: int = 0) -> Built:
    """Return `embedder` as a peer's result, in the dtype that all peers embed in."""
    merge_adapters(workshop, embedder)
    return Built(encoder_of(embedder.eval(), name), tokens, embedder)


def merge_adapters(workshop: Workshop, embedder: SentenceTransformer) -> None:
    """Fold adapters into the weights in float32 and go back to the backbone's dtype, in place."""
    merge_lora(embedder)
    module: nn.Module = transformer_of(embedder).model
    module.to(resolve_dtype(workshop.backbone.dtype))
