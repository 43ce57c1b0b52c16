"""`train`, the one way to an embedder, and how it was called before."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from text2token.cli.common import is_first, proposed, reporter_for, show_json, to_read, warn, workers_of
from text2token.cli.options import (
    Engine,
    Format,
    Json,
    OnError,
    Overwrite,
    Quiet,
    RayAddress,
    Resume,
    RunFolder,
    Set,
    SourcesOrRecipe,
    TextField,
    setting,
)
from text2token.errors import UsageError
from text2token.recipe import (
    Attention,
    BackboneSettings,
    Pooling,
    Recipe,
    StageSettings,
    read_recipe,
    recipe_names,
)

if TYPE_CHECKING:
    from text2token.evaluation.comparison import Evaluation

LENGTH = "stage1.max_tokens"
QUESTIONS: dict[tuple[str, ...], str] = {("python:stdlib",): "wait until a thread has finished"}


def train(
    output: Annotated[Path, typer.Option(help="Folder of the finished embedder.")],
    sources: SourcesOrRecipe = None,
    recipe: Annotated[
        str | None, typer.Option(help=f"Settings to begin with: a TOML file, or {', '.join(recipe_names())}.")
    ] = None,
    backbone: Annotated[str | None, setting(BackboneSettings, "name")] = None,
    run_folder: RunFolder = None,
    text_field: TextField = None,
    format: Format = None,
    on_error: OnError = None,
    prompt: Annotated[str | None, setting(BackboneSettings, "prompt")] = None,
    pooling: Annotated[Pooling | None, setting(BackboneSettings, "pooling")] = None,
    attention: Annotated[Attention | None, setting(BackboneSettings, "attention")] = None,
    max_tokens: Annotated[
        int | None, setting(StageSettings, "max_tokens", hint=f" Without end: --set {LENGTH}=none.")
    ] = None,
    minutes: Annotated[float | None, setting(Recipe, "minutes")] = None,
    seed: Annotated[int | None, setting(Recipe, "seed")] = None,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    set_: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Train an embedder on unlabelled text. Interrupted or with other settings, it redoes only what has changed."""
    given = {
        "backbone.name": backbone,
        "backbone.prompt": prompt,
        "backbone.pooling": pooling,
        "backbone.attention": attention,
        "reading.text_field": text_field,
        "reading.format": format,
        "reading.on_error": on_error,
        LENGTH: max_tokens,
        "minutes": minutes,
        "seed": seed,
    }
    assignments = [*(f"{key}={value}" for key, value in given.items() if value is not None), *(set_ or [])]
    if any(assignment.partition("=")[0].strip() == LENGTH for assignment in assignments):
        assignments.append("minutes=none")
    settings = _recipe(recipe, backbone).with_settings(assignments)
    settings = replace(settings, sources=tuple(sources or settings.sources))
    if not settings.sources:
        named = f"{recipe}: names no text" if recipe else "no text to train on"
        raise UsageError(f'{named}; give files, or sources = ["docs.jsonl"] in a recipe')
    documents = to_read(settings.sources, settings.reading)
    folder = run_folder or output.with_name(output.name + ".run")
    reporter = reporter_for(quiet)
    from text2token.training.run import train as train_by

    with workers_of(engine, ray_address) as workers:
        result = train_by(
            settings,
            documents,
            output=output,
            run_folder=folder,
            overwrite=overwrite,
            reporter=reporter,
            engine=workers,
        )
    if not is_first():
        return
    warn(documents)
    if json_:
        show_json(asdict(result))
    elif not quiet:
        if result.evaluation:
            _show_gain(result.evaluation)
        sys.stderr.write(
            f"The embedder is in {output}, all else in {folder}. Use it:\n"
            f"  SentenceTransformer({str(output)!r}).encode(['a text'])\n"
            "Search with it; the first time it embeds every document:\n"
            f"  {proposed('search', output, *settings.sources, QUESTIONS.get(settings.sources, 'your question'))}\n"
        )


def _recipe(name: str | None, backbone: str | None) -> Recipe:
    if name:
        return read_recipe(name)
    if backbone is None:
        raise UsageError("no model to train: give --backbone NAME, or a --recipe that names one")
    return Recipe(BackboneSettings(backbone))


def _show_gain(evaluation: "Evaluation") -> None:
    from text2token.cli.show import show_evaluation

    show_evaluation(evaluation)
    gain = evaluation.trained.mrr_at_10 - evaluation.untrained.mrr_at_10
    verdict = f"MRR@10 rose by {gain:.1f} points." if gain > 0 else "There was no gain: training did not help here."
    sys.stderr.write(f"{verdict}\n")
