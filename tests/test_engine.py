"""Local or on Ray, the same files come out, and what goes wrong on a worker is told as if it had gone wrong here."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TEXTS, BackboneMaker, not_here
from datasets import Dataset

from text2token.corpus.documents import Document
from text2token.engine import Engine, LocalEngine, check_written, open_engine
from text2token.errors import CorpusError, EngineUnavailable, UsageError
from text2token.export.vectors import embed_corpus, read_card
from text2token.model.backbone import load_embedder
from text2token.model.bundle import load_backbone
from text2token.model.encoder import open_encoder
from text2token.recipe import BackboneSettings, ConstructorName, Recipe, TargetSettings
from text2token.targets.constructors import make_constructor, write_constructed
from text2token.training.run import build_targets

CORPUS = [f"{text} Number {number}." for number in range(4) for text in TEXTS]


@pytest.fixture(scope="module")
def ray_engine() -> Iterator[Engine]:
    if importlib.util.find_spec("ray") is None:
        not_here("ray is not installed: pip install 'text2token[ray]'")
    with open_engine("ray", workers=2) as engine:
        yield engine


@pytest.fixture
def passages(tmp_path: Path) -> Dataset:
    """A corpus on disk, three passages to a document."""
    documents = [number // 3 for number in range(len(CORPUS))]
    Dataset.from_dict({"text": CORPUS, "document": documents}).save_to_disk(str(tmp_path / "corpus"))
    return Dataset.load_from_disk(str(tmp_path / "corpus"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", get_args(ConstructorName))
def test_targets_made_on_two_workers_are_the_same_files(
    tiny: BackboneSettings,
    passages: Dataset,
    ray_engine: Engine,
    tmp_path: Path,
    small_parts: Callable[[int], None],
    name: ConstructorName,
) -> None:
    small_parts(9)
    given = load_backbone(tiny)
    heard: dict[str, int] = {}
    for where, engine in (("here", LocalEngine()), ("ray", ray_engine)):
        done: list[int] = []
        constructor = make_constructor(name, given, TargetSettings())
        write_constructed(constructor, passages, given, tmp_path / where, progress=done.append, engine=engine)
        heard[where] = sum(done)
    assert len(list((tmp_path / "ray").glob("targets-*.parquet"))) == 5
    assert files(tmp_path / "ray") == files(tmp_path / "here")
    assert heard == {"here": len(CORPUS), "ray": len(CORPUS)}


def test_vectors_made_on_two_workers_are_the_same_files(
    make_backbone: BackboneMaker, tiny: BackboneSettings, ray_engine: Engine, tmp_path: Path
) -> None:
    load_embedder(tiny).save(str(tmp_path / "model"))
    encoder = open_encoder(str(tmp_path / "model"))
    documents = [Document(body=text, place=str(number)) for number, text in enumerate(CORPUS)]
    embed_corpus(encoder, documents, tmp_path / "here", rows_per_shard=7)
    card = embed_corpus(encoder, iter(documents), tmp_path / "ray", rows_per_shard=7, engine=ray_engine)
    assert card.rows == len(CORPUS)
    expected = files(tmp_path / "here")
    assert len(expected) == 1 + 6
    assert files(tmp_path / "ray") == expected
    (tmp_path / "ray" / "vectors-00003.parquet").unlink()
    embed_corpus(encoder, documents, tmp_path / "ray", rows_per_shard=7, engine=ray_engine)
    assert files(tmp_path / "ray") == expected


def test_workers_that_stand_in_another_folder_write_where_they_are_told(
    make_backbone: BackboneMaker,
    tiny: BackboneSettings,
    ray_engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_parts: Callable[[int], None],
) -> None:
    assert Path.cwd() != tmp_path
    monkeypatch.chdir(tmp_path)  # the workers were started before
    load_embedder(tiny).save("model")
    documents = [Document(body=text, place=str(number)) for number, text in enumerate(CORPUS)]
    card = embed_corpus(open_encoder("model"), documents, Path("vectors"), rows_per_shard=7, engine=ray_engine)
    assert card.rows == len(CORPUS)
    assert len(list((tmp_path / "vectors").glob("vectors-*.parquet"))) == 6
    small_parts(9)
    recipe = Recipe(tiny).with_settings(["stage1.targets=data_driven"])
    targets = build_targets(recipe, documents, output=Path("targets"), engine=ray_engine)
    assert len(targets.shards) > 1
    assert all((tmp_path / "targets" / shard.file).exists() for shard in targets.shards)


class Elsewhere(LocalEngine):
    """A cluster whose machines each have a disk of their own: what its workers write is not here."""

    def map(self, work: Any, parts: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        for name, rows in super().map(work, parts, *arguments, **options):
            for path in self.root.rglob(f"*{name}"):
                path.unlink()
            yield name, rows

    def __init__(self, root: Path) -> None:
        self.root = root


def test_what_workers_wrote_on_a_disk_of_their_own_is_missed(tiny: BackboneSettings, tmp_path: Path) -> None:
    documents = [Document(body=text, place=str(number)) for number, text in enumerate(CORPUS)]
    load_embedder(tiny).save(str(tmp_path / "model"))
    encoder = open_encoder(str(tmp_path / "model"))
    out = tmp_path / "vectors"
    with pytest.raises(EngineUnavailable, match=r"vectors-00000.parquet: is not here, .* a disk that they share"):
        embed_corpus(encoder, documents, out, rows_per_shard=7, engine=Elsewhere(tmp_path))
    assert read_card(out).rows == 0  # nobody takes it for finished
    assert embed_corpus(encoder, documents, out, rows_per_shard=7).rows == len(CORPUS)
    recipe = Recipe(tiny).with_settings(["stage1.targets=model_derived"])
    with pytest.raises(EngineUnavailable, match="is not here"):
        build_targets(recipe, documents, output=tmp_path / "targets", engine=Elsewhere(tmp_path))
    assert not (tmp_path / "targets").exists()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "short.parquet")
    with pytest.raises(EngineUnavailable, match=r"has 1 rows here, though a worker wrote it with 2"):
        check_written(tmp_path, {"short.parquet": 2})


def test_parts_are_taken_from_a_stream_no_faster_than_workers_take_them(ray_engine: Engine) -> None:
    taken: list[int] = []

    def stream() -> Iterator[int]:
        for number in range(30):
            taken.append(number)
            yield number

    ahead = [len(taken) - done for done, _ in enumerate(ray_engine.map(lambda part, progress: part, stream()))]
    assert len(taken) == 30
    assert max(ahead) <= 4


def test_an_error_on_a_worker_is_the_error_here(ray_engine: Engine) -> None:
    def fails(part: int, progress: object) -> int:
        if part == 3:
            raise CorpusError(f"part {part} cannot be read")
        return part

    with pytest.raises(CorpusError) as caught:
        list(ray_engine.map(fails, range(9)))
    assert str(caught.value) == "part 3 cannot be read"


def test_a_worker_that_dies_is_started_again_and_its_part_done_again(ray_engine: Engine, tmp_path: Path) -> None:
    def dies_once(part: int, progress: object) -> int:
        mark = tmp_path / f"tried-{part}"
        if part == 1 and not mark.exists():
            mark.touch()
            os._exit(1)
        return part

    assert sorted(ray_engine.map(dies_once, range(4))) == [0, 1, 2, 3]
    with pytest.raises(EngineUnavailable, match="a Ray worker died, 4 times with one part"):
        list(ray_engine.map(lambda part, progress: os._exit(1), [0]))


def test_an_engine_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="choose local or ray"), open_engine("spark"):
        pass
    with pytest.raises(UsageError, match="needs --engine ray"), open_engine("local", "auto"):
        pass
    with pytest.raises(EngineUnavailable, match=r"no Ray at 127\.0\.0\.1:9 \(.*refused"), open_engine("ray", "127.0.0.1:9"):
        pass
