"""`index` and `search`."""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from text2token.cli.common import counted, needing, proposed, reading_of, reporter_for, show_json, to_read, warn
from text2token.cli.options import Format, Json, Model, OnError, Quiet, Sources, TextField
from text2token.errors import UsageError
from text2token.search import LANGUAGE, Mode


def index(
    model: Model,
    sources: Sources,
    store: Annotated[Path, typer.Option(help="Folder of the index; made if it is not there.")],
    language: Annotated[
        str, typer.Option(help="Whose stop words and stems count as words: english, german, …, or none.")
    ] = LANGUAGE,
    prune: Annotated[bool, typer.Option("--prune", help="Remove documents that are not in SOURCES.")] = False,
    text_field: TextField = None,
    format: Format = None,
    on_error: OnError = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Make or update a searchable index. Only new documents are embedded, and the same command resumes."""
    reporter = reporter_for(quiet)
    reading = reading_of(text_field, format, on_error)
    total = counted(sources, reading, empty=True)
    documents = to_read(sources, reading)
    with needing("search"):
        from text2token.search.index import fill_index
    filled = fill_index(store, model, documents, language=language, prune=prune, total=total, reporter=reporter)
    warn(documents)
    if json_:
        show_json(asdict(filled))
    elif not quiet:
        print(f"{store}: {filled.sentence()}. Search: {proposed('search', store, '…')}")


def search(
    place: Annotated[str, typer.Argument(metavar="INDEX|MODEL", help="An index, or an embedder for a search without one.")],
    words: Annotated[
        list[str],
        typer.Argument(metavar="[SOURCES…] QUERY", help="The query; after an embedder, first the sources."),
    ],
    k: Annotated[int, typer.Option("-k", help="How many hits.", min=1)] = 5,
    mode: Annotated[Mode, typer.Option(help="By both halves, by meaning (dense), or by words (sparse).")] = "hybrid",
    filter_: Annotated[
        list[str] | None,
        typer.Option("--filter", help="field=value that a hit must have. Repeatable; the same field again: or."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of an index: where its embedder is now, if it was moved.")] = None,
    text_field: TextField = None,
    format: Format = None,
    on_error: OnError = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Search an index, or files without one. INDEX QUERY, or MODEL SOURCES QUERY; each hit has its reasons."""
    *sources, query = words
    reporter, documents = reporter_for(quiet), None
    with needing("search"):
        from text2token.search.index import Index
        from text2token.search.one_off import kept_index
        from text2token.search.store import is_index
    with contextlib.ExitStack() as stack:
        if not sources:
            opened = stack.enter_context(Index.open(place, model))
        elif model or is_index(Path(place)):
            raise UsageError("after an index comes the query alone; put one of several words in quotation marks")
        else:
            documents = to_read(sources, reading_of(text_field, format, on_error))
            opened = stack.enter_context(kept_index(place, sources, list(documents), reporter))
        hits = opened.search(query, k, mode, filters_of(filter_ or [], opened.has_field))
    warn(documents)
    if json_:
        show_json([asdict(hit) for hit in hits])
    else:
        from text2token.cli.show import show_hits

        show_hits(hits, mode)


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
