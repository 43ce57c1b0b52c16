"""A table too large for one piece: numbered Parquet files, each made by whichever worker is free.

    KIND-00000.parquet, KIND-00001.parquet, …

A file takes its name when it is complete, so that what stands there need not be made again.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from text2token.engine import Engine, check_written
from text2token.files import atomic_file, claim, forget
from text2token.progress import Progress

Part = TypeVar("Part")


@dataclass(frozen=True)
class Shard:
    """One of the files: its name, the number of its rows, and its SHA-256."""

    file: str
    rows: int
    sha256: str


def shards_in(folder: Path, kind: str) -> list[Path]:
    """Return the files of this kind in their order."""
    return sorted(folder.glob(f"{kind}-*.parquet"))


def rows_of(path: Path, part: object = None) -> int:
    """Return how many rows a finished shard has."""
    return int(pq.read_metadata(path).num_rows)


def write_shards(
    folder: Path,
    kind: str,
    parts: Iterable[Part],
    table_of: Callable[[Part, Progress], pa.Table],
    engine: Engine,
    progress: Progress | None = None,
    *,
    finished: Callable[[Path, Part], int] = rows_of,
    runs_model: bool = False,
) -> list[int]:
    """Write the table of each part as one shard, on `engine`'s workers, and return how many rows each has.

    Of a part whose file is there the rows that `finished` counts are taken; it may refuse them. `folder` is as a worker
    finds it, which stands elsewhere (`files.real`). `progress` counts what `table_of` returns, or those rows.
    """
    rows = dict(
        engine.map(partial(_written, folder, kind, table_of, finished), enumerate(parts), progress, runs_model=runs_model)
    )
    check_written(folder, rows)
    return [rows[name] for name in sorted(rows)]


def _written(
    folder: Path,
    kind: str,
    table_of: Callable[[Part, Progress], pa.Table],
    finished: Callable[[Path, Part], int],
    numbered: tuple[int, Part],
    progress: Progress,
) -> tuple[str, int]:
    number, part = numbered
    path = folder / f"{kind}-{number:05}.parquet"
    if path.exists():
        rows = finished(path, part)
        progress(rows)
        return path.name, rows
    table = table_of(part, progress)
    with atomic_file(path) as unfinished:
        pq.write_table(table, unfinished, compression="zstd")
    return path.name, table.num_rows


@contextmanager
def unfinished_beside(folder: Path, made_from: str) -> Iterator[Path]:
    """Yield FOLDER.unfinished, where shards wait until all of them are there, and delete it when the block succeeds.

    What a killed process left there is kept where it was `made_from` the same, and deleted where not.
    """
    waiting = folder.with_name(f"{folder.name}.unfinished")
    record = waiting / "made-from.json"
    claim(waiting)
    if not record.exists() or record.read_text(encoding="utf-8") != made_from:
        forget(waiting)
        claim(waiting)
        with atomic_file(record) as path:
            path.write_text(made_from, encoding="utf-8")
    yield waiting
    forget(waiting)


def described(paths: Iterable[Path]) -> list[Shard]:
    """Return the entries of a card for these shards."""
    return [Shard(path.name, rows_of(path), sha256_of(path)) for path in paths]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
