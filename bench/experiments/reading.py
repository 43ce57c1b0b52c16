"""How is a decoder best read? What comes after training, choice by choice: layers left out, post-processing, dimensions.

    python bench/experiments/reading.py MODEL CORPUS_FILE [--suite FOLDER --suite-tokens N]
        [--cut 0,1,2] [--dimensions 64,128,256]

MODEL is a backbone (untrained), or the folder of an embedder trained with `--set cut_layers=0`: all its layers are there.
The corpus' held-out documents give label-free MRR@10; with a suite, Mean(TaskType) and every type stand beside it.
"""

import argparse
import tempfile
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from text2token.cli.show import TerminalReporter, quiet_libraries
from text2token.corpus.prepare import prepare_corpus
from text2token.corpus.readers import read_documents
from text2token.evaluation.label_free import dense_scores
from text2token.evaluation.labelled import score_suite
from text2token.evaluation.suite import read_suite, sample_suite
from text2token.model.backbone import load_embedder, open_embedder, resolve_dtype, transformer_of, without_last_layers
from text2token.model.encoder import TextEncoder, encoder_of
from text2token.model.whitening import Strength, Whitening, fit_postprocessing, sample_texts
from text2token.recipe import BackboneSettings, CorpusSettings


def load(name: str) -> SentenceTransformer:
    """Return transformer and pooling, in the dtype that embedding is fastest in."""
    if not (Path(name) / "modules.json").exists():
        return load_embedder(BackboneSettings(name, max_length=128))
    embedder = SentenceTransformer(modules=list(open_embedder(name))[:2])
    transformer_of(embedder).model.to(resolve_dtype("auto"))  # type: ignore[arg-type]
    return embedder


def finishes(encoder: TextEncoder, sample: list[str], dimensions: list[int]) -> list[tuple[str, TextEncoder]]:
    """Return the encoder under every post-processing, and the half-whitened one cut to so many dimensions."""
    vectors = encoder(sample)
    maps = {"none": fit_postprocessing(vectors, "none"), "centred": fit_postprocessing(vectors, "centred")}
    maps |= {f"whitened, {name}": fit_postprocessing(vectors, strength=name) for name in get_args(Strength)}
    whole = maps["whitened, half"]
    maps |= {f"whitened, half, {m} dimensions": Whitening(whole.centre, whole.transform[:, :m]) for m in dimensions}
    return [(name, encoder.postprocessed_by(whitening, f"{encoder.name}, {name}")) for name, whitening in maps.items()]


def main() -> None:
    """Embed once per cut, score every post-processing and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("corpus")
    parser.add_argument("--suite", type=Path)
    parser.add_argument("--suite-tokens", type=int, default=100_000)
    parser.add_argument("--cut", default="0,1,2")
    parser.add_argument("--dimensions", default="64,128,256")
    chosen = parser.parse_args()
    quiet_libraries()
    reporter, console, table = TerminalReporter(), Console(width=160), None
    tasks = sample_suite(read_suite(chosen.suite), chosen.suite_tokens) if chosen.suite else []
    embedder = load(chosen.model)
    with tempfile.TemporaryDirectory() as folder:
        settings = CorpusSettings(halves_from=0)
        corpus = prepare_corpus(read_documents([chosen.corpus]), Path(folder) / "corpus", settings)
        queries, passages = list(corpus.held_out["query"]), list(corpus.held_out["passage"])
        sample = sample_texts(corpus.passages, seed=0)
        for cut in map(int, chosen.cut.split(",")):
            with without_last_layers(embedder, cut):
                encoder = encoder_of(embedder, f"{cut} layers left out")
                texts = {*sample, *queries, *passages}
                with reporter.progress(encoder.name, len(texts), "texts") as progress:
                    encoder(list(texts), progress)
                for name, finished in finishes(encoder, sample, [int(m) for m in chosen.dimensions.split(",") if m]):
                    found = score_suite(finished, tasks, Path(folder) / "mteb", reporter) if tasks else None
                    figures = {"Mean (TaskType)": found.mean_task_type, **found.types} if found else {}
                    figures = {"label-free MRR@10": dense_scores(finished(queries), finished(passages)).mrr_at_10, **figures}
                    if table is None:
                        table = Table("left out", "post-processing", *figures)
                    table.add_row(str(cut), name, *(f"{value:.1f}" for value in figures.values()))
    if table is not None:
        console.print(table)


if __name__ == "__main__":
    main()
