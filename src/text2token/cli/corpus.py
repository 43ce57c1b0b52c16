"""Commands that make files of a corpus without training: targets, static embeddings, vectors."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from text2token.cli.common import counted, proposed, reading_of, reporter_for, show_json, to_read, warn, workers_of
from text2token.cli.options import (
    Backbone,
    DType,
    Engine,
    Format,
    Json,
    Model,
    OnError,
    Overwrite,
    Quiet,
    RayAddress,
    Resume,
    Set,
    Sources,
    TextField,
)
from text2token.recipe import BackboneSettings, Recipe


def targets(
    sources: Sources,
    backbone: Backbone,
    output: Annotated[Path, typer.Option(help="Folder for the targets.")],
    text_field: TextField = None,
    format: Format = None,
    on_error: OnError = None,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Build token targets only. They are Parquet shards and a card, to look at before training."""
    reporter = reporter_for(quiet)
    from text2token.export.folder import check_output
    from text2token.training.run import build_targets

    recipe = Recipe(BackboneSettings(backbone), sources=tuple(sources)).with_settings(set_ or [])
    check_output(output, overwrite, recipe.backbone.name)
    documents = to_read(recipe.sources, reading_of(text_field, format, on_error))
    with workers_of(engine, ray_address) as workers:
        card = build_targets(recipe, documents, output=output, reporter=reporter, engine=workers)
    warn(documents)
    if json_:
        show_json(asdict(card))
    elif not quiet:
        print(f"{card.texts:,} targets in {len(card.shards)} shards ({card.dropped:,} texts dropped): {output}")


def static(
    sources: Sources,
    backbone: Backbone,
    output: Annotated[Path, typer.Option(help="Folder for the embedder.")],
    dimensions: Annotated[
        int | None, typer.Option(help="Keep only so many, those of the largest variance.", show_default=False)
    ] = None,
    text_field: TextField = None,
    format: Format = None,
    on_error: OnError = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make static embeddings, without training. It takes seconds and gives the fastest embedder; it knows no word order."""
    reporter = reporter_for(quiet)
    from text2token.export.static import build_static

    documents = to_read(sources, reading_of(text_field, format, on_error))
    build_static(
        BackboneSettings(backbone),
        documents,
        output,
        dimensions=dimensions,
        overwrite=overwrite,
        reporter=reporter,
    )
    warn(documents)
    if not quiet:
        print(f"Embedder: {output}. Is it good enough? {proposed('evaluate', output, '--corpus', sources[0])}")


def embed(
    model: Model,
    sources: Sources,
    output: Annotated[Path, typer.Option(help="Folder for the vectors: Parquet shards and a card.")],
    dtype: DType = "auto",
    text_field: TextField = None,
    format: Format = None,
    on_error: OnError = None,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    resume: Resume = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Write the vectors of a corpus to disk. Its size does not matter, and the same command resumes."""
    reporter = reporter_for(quiet)
    from text2token.export.vectors import CARD, embed_corpus
    from text2token.files import alone_in
    from text2token.model.encoder import open_encoder

    reading = reading_of(text_field, format, on_error)
    total = counted(sources, reading, empty=False)
    documents = to_read(sources, reading)
    encoder = open_encoder(model, dtype)
    with alone_in(output, record=CARD), workers_of(engine, ray_address) as workers:
        card = embed_corpus(
            encoder, documents, output, sources=tuple(sources), total=total, reporter=reporter, engine=workers
        )
    warn(documents)
    if json_:
        show_json(asdict(card))
    elif not quiet:
        print(f"{card.rows:,} vectors of {card.dimension} dimensions: {output}")
