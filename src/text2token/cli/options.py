"""What the commands share: their options, and what is made of those. Heavy imports happen inside, as in the commands."""

import codecs
import contextlib
import importlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from text2token.errors import UsageError, printable

if TYPE_CHECKING:
    from text2token.corpus.readers import BrokenLines
    from text2token.progress import Reporter
    from text2token.recipe import ReadingSettings
    from text2token.train.run import RunResult

Sources = Annotated[
    list[str],
    typer.Argument(
        help="Files (.txt .jsonl .ndjson .json .csv .tsv .parquet, also .gz .zst), globs, URLs (s3:// gs:// https:// …), a "
        "datasets folder, - for standard input, or python:stdlib for the docstrings of your Python.",
        show_default=False,
    ),
]
TextField = Annotated[
    str | None, typer.Option(help="JSON key (data.text within objects) or column that holds the text. Default: found.")
]
Format = Annotated[str, typer.Option(help="auto, txt, jsonl, json, csv, tsv or parquet.")]
OnError = Annotated[str, typer.Option(help="What a broken line does: stop, or skip (counted and shown).")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting of the recipe, such as stage1.learning_rate=1e-4. Repeatable."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing but errors and results.")]
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
Engine = Annotated[str, typer.Option(help="Who makes the parts of the work: local, or ray, the workers of a Ray cluster.")]
RayAddress = Annotated[
    str | None,
    typer.Option(help="With --engine ray: auto, or host:port of a cluster. Default: RAY_ADDRESS, else this machine."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run and model.")]


def filters_of(assignments: Sequence[str], is_field: Callable[[str], bool]) -> dict[str, list[str]]:
    """Return field → values of `field=value`s, or raise `UsageError`.

    A name that holds "=" itself is known by `is_field`, and wherever that leaves a doubt it is written as JSON writes it.
    """
    filters: dict[str, list[str]] = {}
    for assignment in assignments:
        name, value = _parted(assignment, is_field)
        filters.setdefault(name, []).append(value)
    return filters


def _parted(assignment: str, is_field: Callable[[str], bool]) -> tuple[str, str]:
    if assignment.startswith('"'):
        with contextlib.suppress(ValueError):
            name, end = json.JSONDecoder().raw_decode(assignment)
            if assignment[end : end + 1] == "=":
                return name, assignment[end + 1 :]
    parts = [(assignment[:place], assignment[place + 1 :]) for place, sign in enumerate(assignment) if place and sign == "="]
    if not parts:
        raise UsageError(f"--filter is {assignment!r}; it must be field=value")
    meant = [part for part in parts if is_field(part[0])]
    if len(meant) > 1:
        quoted = " or ".join(f"{json.dumps(name, ensure_ascii=False)}={value}" for name, value in meant)
        raise UsageError(f"--filter is {assignment!r}: which field is meant? Write {quoted}, marks included")
    return (meant or parts)[0]


def needing(extra: str, module: str) -> Any:
    """Import a module that stands on the packages of an extra, or say how to install them."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("text2token"):
            raise
        raise UsageError(f"this needs the package {error.name}: pip install 'text2token[{extra}]'") from None


def proposed(*words: object) -> str:
    """Return a command that can be copied: this program as it was called, with `words`, quoted where they must be."""
    called = Path(sys.argv[0])
    program = [str(called)] if called.name == "text2token" else [sys.executable, "-m", "text2token"]
    return shlex.join([*program, *map(str, words)])


def documents_of(sources: Sequence[str], text_field: str | None, format: str, broken: "BrokenLines") -> Any:
    """Return an iterator over the documents of `sources`, each of which is there; `CorpusError` where one is not."""
    from text2token.corpus.readers import expand_sources, read_documents

    expand_sources(sources)  # a misspelt file is told at once, not after the model has loaded
    return read_documents(sources, text_field=text_field, format=format_of(format), broken=broken)


def to_read(sources: Sequence[str], reading: "ReadingSettings") -> tuple["BrokenLines", Any]:
    """Return what counts broken lines, and the documents of a recipe."""
    broken = broken_lines(reading.on_error)
    return broken, documents_of(sources, reading.text_field, reading.format, broken)


def reading_with(reading: "ReadingSettings", text_field: str | None, format: str, on_error: str) -> "ReadingSettings":
    """Return `reading` with what the command line says otherwise than by default."""
    from text2token.recipe import ReadingSettings

    given = ReadingSettings(text_field, format_of(format), broken_lines(on_error).on_error)
    usual = asdict(ReadingSettings())
    return replace(reading, **{name: value for name, value in asdict(given).items() if value != usual[name]})


def format_of(name: str) -> Any:
    """Return the format of this name, or raise `UsageError`."""
    from text2token.corpus.readers import FORMATS

    if name not in {"auto", *FORMATS.values()}:
        raise UsageError(f"--format is {name!r}; choose auto, {', '.join(sorted(set(FORMATS.values())))}")
    return name


def dtype_of(name: str) -> Any:
    """Return the number format of this name, or raise `UsageError`."""
    from text2token.recipe import DType

    if name not in (there := get_args(DType)):
        raise UsageError(f"--dtype is {name!r}; choose {', '.join(there)}")
    return name


@contextlib.contextmanager
def workers_of(engine: str, ray_address: str | None) -> Any:
    """Yield the engine; Ray tells of workers that died on stdout, which is for results."""
    from text2token.engine import open_engine

    with open_engine(engine, ray_address) as workers, contextlib.redirect_stdout(sys.stderr):
        yield workers


def broken_lines(on_error: str) -> "BrokenLines":
    """Return what counts the broken lines that `--on-error` lets pass, and tells what was taken for granted."""
    from text2token.corpus.readers import BrokenLines

    if on_error not in ("stop", "skip"):
        raise UsageError(f"--on-error is {on_error!r}; choose stop or skip")
    return BrokenLines(on_error, tell=lambda note: print(note, file=sys.stderr))  # type: ignore[arg-type]


def reporter_for(quiet: bool) -> "Reporter":
    """Return what shows progress on the terminal, and let the libraries be quiet."""
    from text2token.cli.show import TerminalReporter, quiet_libraries
    from text2token.progress import Silent

    quiet_libraries()
    return Silent() if quiet else TerminalReporter()


def show_result(result: "RunResult", as_json: bool, quiet: bool, broken: "BrokenLines | None") -> None:
    """Show what a run came to, as a table or as JSON."""
    from text2token.cli.show import show_evaluation

    if not is_first():
        return
    warn(broken)
    if as_json:
        show_json(asdict(result))
    elif not quiet and result.evaluation:
        show_evaluation(result.evaluation)


def show_json(content: Any) -> None:
    """Print `content` as JSON, letters as they are where stdout takes them, and control characters by their numbers."""
    takes_all = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    text = json.dumps(content, indent=2, ensure_ascii=not takes_all)
    print(re.sub(r"[\x7f-\x9f]", lambda sign: f"\\u{ord(sign[0]):04x}", text))


def is_first() -> bool:
    """Say whether this is the one of several training processes that speaks."""
    return os.environ.get("RANK", "0") == "0"


def warn(broken: "BrokenLines | None") -> None:
    """Say how many broken lines were left out."""
    if broken and broken.count:
        sys.stderr.write(f"Left out {broken.count:,} broken lines, the first of them:\n")
        sys.stderr.writelines(f"  {printable(message)}\n" for message in broken.first)
