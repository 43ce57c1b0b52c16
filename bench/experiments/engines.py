"""Which embedded engine keeps the vectors of `text2token index`? Fill, search, size, and what a kill -9 leaves behind.

    pip install qdrant-edge-py qdrant-client milvus-lite pymilvus
    python bench/experiments/engines.py MODEL docs.jsonl [--engines qdrant-edge,qdrant-client,milvus-lite]

MODEL is an embedder, best a table of `text2token static`: it is the engines that are measured. Every document has a dense
vector, a sparse one (its key tokens by tf-idf) and its text. Each engine runs in a process of its own; a second filling is
killed half-way, opened again, counted and gone on with. Times depend on the machine: compare within one run.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, load_npz, save_npz

BATCH = 256
QUERIES = 200
HITS = 10
CANDIDATES = 100  # of each half, before they are fused


class Batch:
    """Some rows: ids, dense vectors (rows, dimension), sparse ones as a matrix, texts."""

    def __init__(self, ids: list[int], dense: NDArray[np.float32], sparse: csr_array, texts: list[str]) -> None:
        self.ids, self.dense, self.sparse, self.texts = ids, dense, sparse, texts

    def pairs(self, row: int) -> tuple[list[int], list[float]]:
        """Return the indices and values of a row's sparse vector."""
        start, end = self.sparse.indptr[row], self.sparse.indptr[row + 1]
        return self.sparse.indices[start:end].tolist(), self.sparse.data[start:end].tolist()


class Engine(Protocol):
    """What is measured of each."""

    def add(self, batch: Batch) -> None:
        """Store the rows; a row that is there already is replaced."""

    def finish(self) -> None:
        """Do what the engine wants done after filling."""

    def count(self) -> int:
        """Return how many rows there are."""

    def search(self, batch: Batch, mode: str) -> list[int]:
        """Return the ids of the best rows for the first row of `batch`; `mode` is dense, sparse or hybrid."""

    def close(self) -> None:
        """Write everything."""


class QdrantEdge:
    """Qdrant's engine inside the process (Rust)."""

    def __init__(self, folder: Path, dimension: int) -> None:
        import qdrant_edge as q

        self.q, path = q, folder / "shard"
        if path.exists():
            self.shard = q.EdgeShard.load(str(path))
            return
        path.mkdir()
        dense = {"dense": q.EdgeVectorParams(size=dimension, distance=q.Distance.Dot)}
        self.shard = q.EdgeShard.create(
            str(path), q.EdgeConfig(vectors=dense, sparse_vectors={"sparse": q.EdgeSparseVectorParams()})
        )

    def add(self, batch: Batch) -> None:
        points = [
            self.q.Point(
                id=number,
                vector={"dense": batch.dense[row].tolist(), "sparse": self.q.SparseVector(*batch.pairs(row))},
                payload={"text": batch.texts[row]},
            )
            for row, number in enumerate(batch.ids)
        ]
        self.shard.update(self.q.UpdateOperation.upsert_points(points))

    def finish(self) -> None:
        self.shard.optimize()

    def count(self) -> int:
        return self.shard.count(self.q.CountRequest())

    def search(self, batch: Batch, mode: str) -> list[int]:
        dense = self.q.Query.Nearest(batch.dense[0].tolist(), using="dense")
        sparse = self.q.Query.Nearest(self.q.SparseVector(*batch.pairs(0)), using="sparse")
        if mode == "hybrid":
            halves = [self.q.Prefetch(limit=CANDIDATES, query=half) for half in (dense, sparse)]
            request = self.q.QueryRequest(limit=HITS, prefetches=halves, query=self.q.Fusion.Rrf(k=60), with_payload=True)
        else:
            request = self.q.QueryRequest(limit=HITS, query=dense if mode == "dense" else sparse, with_payload=True)
        return [hit.id for hit in self.shard.query(request)]

    def close(self) -> None:
        self.shard.flush()
        self.shard.close()


class QdrantClientLocal:
    """Qdrant's Python client without a server: numpy and sqlite."""

    def __init__(self, folder: Path, dimension: int) -> None:
        import qdrant_client
        from qdrant_client import models

        self.m, self.client = models, qdrant_client.QdrantClient(path=str(folder / "local"))
        if not self.client.collection_exists("docs"):
            self.client.create_collection(
                "docs",
                vectors_config={"dense": models.VectorParams(size=dimension, distance=models.Distance.DOT)},
                sparse_vectors_config={"sparse": models.SparseVectorParams()},
            )

    def add(self, batch: Batch) -> None:
        points = []
        for row, number in enumerate(batch.ids):
            indices, values = batch.pairs(row)
            vector = {"dense": batch.dense[row].tolist(), "sparse": self.m.SparseVector(indices=indices, values=values)}
            points.append(self.m.PointStruct(id=number, vector=vector, payload={"text": batch.texts[row]}))
        self.client.upsert("docs", points)

    def finish(self) -> None:
        pass

    def count(self) -> int:
        return self.client.count("docs").count

    def search(self, batch: Batch, mode: str) -> list[int]:
        indices, values = batch.pairs(0)
        queries = {"dense": batch.dense[0].tolist(), "sparse": self.m.SparseVector(indices=indices, values=values)}
        if mode == "hybrid":
            halves = [self.m.Prefetch(query=query, using=name, limit=CANDIDATES) for name, query in queries.items()]
            fusion = self.m.FusionQuery(fusion=self.m.Fusion.RRF)
            found = self.client.query_points("docs", prefetch=halves, query=fusion, limit=HITS)
        else:
            found = self.client.query_points("docs", query=queries[mode], using=mode, limit=HITS)
        return [point.id for point in found.points]

    def close(self) -> None:
        self.client.close()


class MilvusLite:
    """Milvus on one file, through its client."""

    def __init__(self, folder: Path, dimension: int) -> None:
        import pymilvus

        self.p, self.client = pymilvus, pymilvus.MilvusClient(str(folder / "milvus.db"))
        if not self.client.has_collection("docs"):
            schema = self.client.create_schema()
            schema.add_field("id", pymilvus.DataType.INT64, is_primary=True)
            schema.add_field("dense", pymilvus.DataType.FLOAT_VECTOR, dim=dimension)
            schema.add_field("sparse", pymilvus.DataType.SPARSE_FLOAT_VECTOR)
            schema.add_field("text", pymilvus.DataType.VARCHAR, max_length=65535)
            index = self.client.prepare_index_params()
            index.add_index("dense", index_type="HNSW", metric_type="IP", params={"M": 16, "efConstruction": 100})
            index.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
            self.client.create_collection("docs", schema=schema, index_params=index)
        self.client.load_collection("docs")

    def add(self, batch: Batch) -> None:
        self.client.upsert(
            "docs",
            [
                {
                    "id": number,
                    "dense": batch.dense[row].tolist(),
                    "sparse": dict(zip(*batch.pairs(row), strict=True)),
                    "text": batch.texts[row],
                }
                for row, number in enumerate(batch.ids)
            ],
        )

    def finish(self) -> None:
        self.client.flush("docs")

    def count(self) -> int:
        return int(self.client.query("docs", output_fields=["count(*)"])[0]["count(*)"])

    def search(self, batch: Batch, mode: str) -> list[int]:
        queries = {"dense": batch.dense[0].tolist(), "sparse": dict(zip(*batch.pairs(0), strict=True))}
        shared = {"limit": HITS, "output_fields": ["text"]}
        if mode == "hybrid":
            halves = [
                self.p.AnnSearchRequest([query], name, {"metric_type": "IP"}, limit=CANDIDATES)
                for name, query in queries.items()
            ]
            found = self.client.hybrid_search("docs", halves, self.p.RRFRanker(60), **shared)
        else:
            found = self.client.search(
                "docs", [queries[mode]], anns_field=mode, search_params={"metric_type": "IP"}, **shared
            )
        return [hit["id"] for hit in found[0]]

    def close(self) -> None:
        self.client.close()


ENGINES = {"qdrant-edge": QdrantEdge, "qdrant-client": QdrantClientLocal, "milvus-lite": MilvusLite}


def prepare(model: str, source: str, folder: Path) -> None:
    """Write what all engines store to `folder`."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

    from text2token.corpus.readers import read_documents
    from text2token.model.backbone import open_embedder
    from text2token.model.encoder import encoder_of
    from text2token.targets.data_driven import DataDrivenTargets
    from text2token.tokens.vocabulary import TargetVocabulary

    embedder = open_embedder(model)
    texts = list(dict.fromkeys(document.text for document in read_documents([source]) if document.text.strip()))
    np.save(folder / "dense.npy", encoder_of(embedder, model)(texts).numpy())
    tokenizer = embedder.tokenizer
    if not hasattr(tokenizer, "backend_tokenizer"):  # a table holds the Rust one
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    words = DataDrivenTargets(tokenizer, TargetVocabulary.from_tokenizer(tokenizer)).fit(Dataset.from_dict({"text": texts}))
    save_npz(folder / "sparse.npz", csr_array(words.rows(texts)))
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")


def batches(folder: Path) -> Iterator[Batch]:
    """Yield what `prepare` wrote."""
    dense, sparse = np.load(folder / "dense.npy"), csr_array(load_npz(folder / "sparse.npz"))
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    for start in range(0, len(texts), BATCH):
        rows = range(start, min(start + BATCH, len(texts)))
        yield Batch(list(rows), dense[rows], sparse[rows], texts[start : start + BATCH])


def fill(name: str, store: Path, data: Path) -> dict[str, float]:
    """Fill from where `store` stands, telling after every batch what the engine has taken."""
    first = next(batches(data))
    engine = ENGINES[name](store, first.dense.shape[1])
    there = engine.count()
    started = time.perf_counter()
    taken = there - there % BATCH
    for batch in itertools.islice(batches(data), there // BATCH, None):
        engine.add(batch)
        taken += len(batch.ids)
        (store / "taken").write_text(str(taken), encoding="utf-8")
    filled = time.perf_counter() - started
    engine.finish()
    engine.close()
    seconds = time.perf_counter() - started
    return {"there": there, "fill": filled, "with_index": seconds, "memory_mb": peak_memory_mb()}


def search(name: str, store: Path, data: Path) -> dict[str, float]:
    """Open and search with every so-manieth document, half of its words left out."""
    started = time.perf_counter()
    first = next(batches(data))
    engine = ENGINES[name](store, first.dense.shape[1])
    result: dict[str, float] = {"count": engine.count()}
    result["open"] = time.perf_counter() - started
    dense, sparse = np.load(data / "dense.npy"), csr_array(load_npz(data / "sparse.npz"))
    rows = np.linspace(0, len(dense) - 1, QUERIES).astype(int)
    for mode in ("dense", "sparse", "hybrid"):
        times, found = [], 0
        for row in rows:
            half = sparse[[row]].copy()
            half.data[::2] = 0
            half.eliminate_zeros()
            query = Batch([int(row)], dense[[row]], csr_array(half), [""])
            started = time.perf_counter()
            hits = engine.search(query, mode)
            times.append(time.perf_counter() - started)
            found += int(row) in hits
        result[f"{mode}_p50"], result[f"{mode}_p99"] = (1000 * float(t) for t in np.percentile(times, [50, 99]))
        result[f"{mode}_found"] = found / len(rows)
    engine.close()
    return result | {"memory_mb": peak_memory_mb()}


def killed(name: str, store: Path, data: Path, total: int) -> dict[str, float]:
    """Kill a filling half-way with -9 and go on: what was there, what had been taken, and how many in the end."""
    process = subprocess.Popen([*_command(name, store, data), "fill"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    taken = 0
    while taken < total // 2 and process.poll() is None:
        time.sleep(0.02)
        noted = store / "taken"
        taken = int(noted.read_text(encoding="utf-8") or 0) if noted.exists() else 0
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    taken = int((store / "taken").read_text(encoding="utf-8") or 0)
    again = run(name, store, data, "fill")
    return {"taken": taken, "there": again["there"], "count": run(name, store, data, "search")["count"]}


def run(name: str, store: Path, data: Path, what: str) -> dict[str, float]:
    """Do one thing in a process of its own and return what it says."""
    done = subprocess.run([*_command(name, store, data), what], stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _command(name: str, store: Path, data: Path) -> list[str]:
    return [sys.executable, "-W", "ignore", __file__, "--inside", name, str(store), str(data)]


def peak_memory_mb() -> float:
    """Return the most that this process has held so far."""
    peak = next(
        line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")
    )
    return int(peak.split()[1]) / 1024  # getrusage would count the parent's as well


def _row(cells: list[Any]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main() -> None:
    """Measure every engine and print one table."""
    if sys.argv[1] == "--inside":
        name, store, data, what = sys.argv[2:]
        print(json.dumps({"fill": fill, "search": search}[what](name, Path(store), Path(data))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("source")
    parser.add_argument("--engines", default=",".join(ENGINES))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="text2token-engines-") as temporary:
        data = Path(temporary)
        prepare(arguments.model, arguments.source, data)
        total = len(json.loads((data / "texts.json").read_text(encoding="utf-8")))
        print(f"{total:,} documents")
        columns = ["engine", "fill, s", "with index, s", "MB on disk", "MB of memory", "open, s"]
        columns += [f"{mode}, ms" for mode in ("dense", "sparse", "hybrid")] + ["taken → there → count after kill -9"]
        print(_row(columns))
        print(_row(["---"] * len(columns)))
        for name in arguments.engines.split(","):
            store, second = data / name, data / f"{name}-killed"
            store.mkdir()
            second.mkdir()
            filled = run(name, store, data, "fill")
            size = sum(file.stat().st_blocks * 512 for file in store.rglob("*") if file.is_file()) / 2**20
            found = run(name, store, data, "search")
            crash = killed(name, second, data, total)
            times = [f"{found[f'{mode}_p50']:.1f} / {found[f'{mode}_p99']:.1f}" for mode in ("dense", "sparse", "hybrid")]
            row = [name, f"{filled['fill']:.0f}", f"{filled['with_index']:.0f}", f"{size:.0f}"]
            row += [f"{max(filled['memory_mb'], found['memory_mb']):.0f}", f"{found['open']:.1f}", *times]
            print(_row([*row, f"{crash['taken']:.0f} → {crash['there']:.0f} → {crash['count']:.0f}"]), flush=True)


if __name__ == "__main__":
    main()
