"""Target constructors by name, and their targets written to disk. Each is a module beside this one that has `build`."""

import hashlib
import importlib
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from text2token.corpus.published import published_model
from text2token.engine import Engine
from text2token.files import real, scratch_folder
from text2token.model.bundle import Backbone
from text2token.progress import Progress
from text2token.recipe import ConstructorName, TargetSettings
from text2token.shards import write_shards
from text2token.steps import digest
from text2token.targets.base import HERE, TEXTS_PER_PART, Constructor, bounds, text_batches
from text2token.targets.data_driven import DataDrivenTargets
from text2token.targets.store import SCHEMA, SHARDS, TargetCard, write_targets

EXPENSIVE_TEXTS_PER_PART = 4096  # minutes of work on a CPU: what a killed run loses at most


def make_constructor(name: ConstructorName, backbone: Backbone, settings: TargetSettings) -> Constructor:
    """Return the constructor of the module of that name, which does not change the backbone."""
    constructor: Constructor = importlib.import_module(f"text2token.targets.{name}").build(backbone, settings)
    return constructor


def write_constructed(
    constructor: Constructor,
    passages: Dataset,
    backbone: Backbone,
    folder: Path,
    *,
    rows: NDArray[np.int64] | None = None,
    progress: Progress | None = None,
    engine: Engine = HERE,
) -> TargetCard:
    """Fit `constructor` on `passages`, write their targets, or those of `rows`, to `folder` and return the card.

    Every part of the texts becomes a shard, whichever `engine` makes it, and a killed run resumes after the
    finished ones.
    """
    size = EXPENSIVE_TEXTS_PER_PART if constructor.expensive else TEXTS_PER_PART
    folder = real(folder)  # a worker stands elsewhere
    with scratch_folder(folder) as scratch:
        if isinstance(constructor, DataDrivenTargets):
            constructor.remember, rows = scratch, None
        constructor.fit(passages, engine)
        read = passages if rows is None else passages.select(rows)
        tokenizer = published_model(backbone.settings.name)
        card = TargetCard.of(constructor.name, constructor.describe(), tokenizer, backbone.vocabulary, len(read))
        parts = bounds(len(read), size)
        table_of = partial(_transformed, constructor, passages, rows)

        def write(waiting: Path) -> None:
            write_shards(waiting, SHARDS, parts, table_of, engine, progress, runs_model=constructor.expensive)

        return write_targets(folder, card, digest(size, _fingerprint(read)), write)


def _transformed(
    constructor: Constructor,
    passages: Dataset,
    rows: NDArray[np.int64] | None,
    part: tuple[int, int],
    progress: Progress,
) -> pa.Table:
    """Return the targets of a part of `rows`, or of all passages where they are None: from where to where."""
    start, stop = part
    chosen = np.arange(start, stop) if rows is None else rows[start:stop]
    return pa.Table.from_batches(constructor.transform(passages, progress, chosen), SCHEMA)


def _fingerprint(passages: Dataset) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for batch in text_batches(passages, 4096):
        digest.update("\0".join(batch).encode())
    return digest.hexdigest()
