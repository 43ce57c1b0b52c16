"""One page about one run: its scores and history, decoded tokens of some texts, a map of the corpus, and what it cost."""

import json
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from torch import Tensor

from text2token.corpus.prepare import Corpus
from text2token.corpus.published import published_recipe
from text2token.errors import CorpusError, OutputError, Text2TokenError, reason
from text2token.evaluation.history import read_history
from text2token.files import atomic_file, check_file
from text2token.lens.reader import open_reader
from text2token.model.encoder import open_encoder
from text2token.model.whitening import sample_texts
from text2token.page import FONT_SIZE, INK, PAGE, RULE, drawing, filled, svg
from text2token.progress import Reporter, Silent
from text2token.training.folder import EARLIER_HISTORY, HISTORY, RunFolder

MAP_TEXTS = 500
BEGINNING = '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta name="generator" content="text2token report">'
MAP_WORDS = 8
SERIES = {f"#0500{number:02d}": f"var(--series-{number})" for number in range(MAP_WORDS)}


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name, and (x, y) points in their order."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class RunReport:
    """What the page shows. `results` is `results.json`, None as long as a run is not finished."""

    name: str
    recipe: str
    settings: dict[str, Any]
    results: dict[str, Any] | None
    histories: dict[str, list[dict[str, Any]]]


def write_report(
    run: Path, output: Path | None = None, *, map_texts: int = MAP_TEXTS, reporter: Reporter | None = None
) -> Path:
    """Write the page about the run folder `run` to `output` (default: report.html in it) and return where it is.

    The map embeds `map_texts` passages with the finished model; 0 leaves it out. Raises `OutputError` when the folder is no
    run's, the page cannot be written, or another file has its name.
    """
    reporter = reporter or Silent()
    report = read_run(run)
    output = output or run / "report.html"
    check_file(output, BEGINNING)
    figures = {"loss": loss_chart(report), **dict(zip(("words", "shape"), history_charts(report), strict=True))}
    map_, words = None, list[tuple[str, int]]()
    if map_texts and report.results:
        try:
            map_, words = corpus_map(run, Path(report.results["model"]), map_texts, reporter)
        except Text2TokenError as error:  # the model has moved: the page is useful without its map
            reporter.note(f"Without a map: {error}")
    content = {"report": asdict(report), "figures": {**figures, "map": map_}, "words": words}
    page = filled("text2token", "report.html.jinja", **content).lstrip()
    with atomic_file(output) as path:
        path.write_text(page, encoding="utf-8")
    return output


def read_run(run: Path) -> RunReport:
    """Read a run folder; an unfinished run has no results yet. `OutputError` where there is no run."""
    work = RunFolder(run)
    try:
        recipe = work.recipe.read_text(encoding="utf-8")
        recipe = published_recipe(recipe)
        settings = tomllib.loads(recipe)
        results = json.loads(work.results.read_text(encoding="utf-8")) if work.results.exists() else None
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{run}: is not the folder of a run ({reason(error)}). It stands beside the model, as MODEL.run"
        ) from error
    paths = [path for name in (EARLIER_HISTORY, HISTORY) for path in work.stages.glob(f"*/{name}")]
    histories = {path.parent.name: read_history(path) for path in sorted(paths)}
    name = Path(results["model"]).name if results else run.name.removesuffix(".run")
    return RunReport(name, recipe, settings, results, {name: lines for name, lines in histories.items() if lines})


def loss_chart(report: RunReport) -> Markup | None:
    """Return the training loss over steps, a line for each stage."""
    lines = [
        Line(stage, [(line["step"], line["loss"]) for line in history if "loss" in line])
        for stage, history in report.histories.items()
    ]
    return chart(lines, "optimiser step", "loss, nats")


def history_charts(report: RunReport) -> tuple[Markup | None, Markup | None]:
    """Return two charts over the steps: the paper's figure (decoded tokens and MRR@10), and the embeddings' geometry."""
    if not report.histories:
        return None, None
    evaluations, offset = [], 0
    for history in report.histories.values():
        evaluations += [{**line, "step": line["step"] + offset} for line in history if "mrr_at_10" in line]
        offset += max((line["step"] for line in history), default=0)

    def line(name: str, key: str) -> Line:
        return Line(name, [(scores["step"], scores[key]) for scores in evaluations if scores.get(key) is not None])

    words = [
        line("decoded tokens: the first is in the text (Hit@1)", "hit_at_1"),
        line("decoded tokens: share of the top 10 in the text", "precision_at_10"),
        line("decoded tokens: global alignment rate (GAR)", "gar"),
        line("vectors: a document's parts find each other, MRR@10", "mrr_at_10"),
    ]
    shape = [
        line("distance of a document's parts (alignment)", "alignment"),
        line("evenness of all (uniformity; lower is more even)", "uniformity"),
        line("common direction (anisotropy)", "anisotropy"),
    ]
    return chart(words, "optimiser step", "percent"), chart(shape, "optimiser step", "value")


def corpus_map(run: Path, model: Path, count: int, reporter: Reporter) -> tuple[Markup, list[tuple[str, int]]]:
    """Return a map where similar passages lie close, coloured by their top-1 decoded token, and those tokens with counts."""
    encoder = open_encoder(str(model), "auto")
    reader = open_reader(model)
    texts = sample_texts(Corpus.open(RunFolder(run).corpus).passages, seed=1, size=count)
    with reporter.progress("Embedding for the map", len(texts), "texts") as progress:
        vectors = encoder(texts, progress)
    if len(texts) < 10:
        raise CorpusError(f"{run}: {len(texts)} passages make no map")
    top_words = [words[0].word if words else "" for words in reader.words(vectors, k=1)]
    frequent = Counter(word for word in top_words if word).most_common(MAP_WORDS)
    return _scatter(_plane(vectors), top_words, [word for word, _ in frequent]), frequent


def chart(lines: Sequence[Line], x: str, y: str) -> Markup | None:
    """Return a line chart as SVG for the page; None when no line has two points."""
    lines = [line for line in lines if len(line.points) > 1]
    if not lines:
        return None
    with drawing():
        figure = Figure(figsize=(7, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for line, colour in zip(lines, SERIES, strict=False):
            marker = "o" if len(line.points) < 20 else None
            axes.plot(
                *zip(*line.points, strict=True), color=colour, label=line.name, marker=marker, markersize=5, linewidth=2
            )
        axes.set(xlabel=x, ylabel=y)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        if len(lines) > 1:
            figure.legend(loc="outside upper left", frameon=False, ncols=1)
        return svg(figure, SERIES)


def _plane(vectors: Tensor) -> NDArray[np.float64]:
    perplexity = min(30, (len(vectors) - 1) / 3)
    plane: NDArray[np.float64] = TSNE(metric="cosine", init="random", random_state=0, perplexity=perplexity).fit_transform(
        vectors.numpy()
    )
    return plane


def _scatter(plane: NDArray[np.float64], top_words: Sequence[str], frequent: Sequence[str]) -> Markup:
    with drawing():
        figure = Figure(figsize=(7, 5), layout="constrained")
        axes = figure.add_subplot()
        others = [row for row, word in enumerate(top_words) if word not in frequent]
        axes.scatter(plane[others, 0], plane[others, 1], s=16, color=RULE, edgecolors=PAGE, linewidths=0.5)
        for word, colour in zip(frequent, SERIES, strict=False):
            rows = [row for row, top in enumerate(top_words) if top == word]
            axes.scatter(plane[rows, 0], plane[rows, 1], s=30, color=colour, edgecolors=PAGE, linewidths=0.5)
            x, y = np.median(plane[rows], axis=0)
            axes.annotate(
                word, (float(x), float(y)), color=INK, fontsize=FONT_SIZE + 1, ha="center", va="bottom", parse_math=False
            )
        axes.set_axis_off()
        return svg(figure, SERIES)
