"""`export`: an embedder in another form."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from text2token.cli.common import needing, reading_of, reporter_for, to_read, warn
from text2token.cli.options import Format, Model, OnError, Overwrite, Quiet, TextField
from text2token.cli.verbs import Verbs
from text2token.errors import UsageError
from text2token.recipe import CorpusSettings

Output = Annotated[Path, typer.Option(help="Folder for it.")]


class Exports(Verbs):
    """The verbs of `export`."""

    earlier = {"--onnx": ("onnx", "--output"), "--sparse": ("sparse", "--output")}  # noqa: RUF012 — typed in `Verbs`


app = typer.Typer(cls=Exports, no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def export() -> None:
    """Export to ONNX or to a sparse encoder."""


@app.command()
def onnx(
    model: Model,
    output: Output,
    bits: Annotated[int, typer.Option(help="8, or 32 for weights as they are.")] = 8,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make a file for onnxruntime, which needs no torch."""
    from text2token.export.folder import check_output

    check_output(output, overwrite, model)
    reporter = reporter_for(quiet)
    reporter.note("Tracing the model, a minute or so …")
    with needing("onnx"):
        from text2token.export.onnx import export_portable
    card = export_portable(model, output, bits=bits, overwrite=overwrite)
    if not quiet:
        print(f"ONNX: {output}, cosine to the model's vectors at least {card.least_cosine}; its README has the code.")


@app.command()
def sparse(
    model: Model,
    output: Output,
    corpus: Annotated[
        str | None,
        typer.Option(
            help="Text to learn from. Default: what MODEL was trained on, in MODEL.run.",
            show_default=False,
        ),
    ] = None,
    active: Annotated[int, typer.Option(help="Tokens that a text has at most.", min=1)] = 128,
    text_field: TextField = None,
    format: Format = None,
    on_error: OnError = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make a sparse encoder: the embedding, decoded to weighted tokens."""
    from text2token.export.folder import check_output

    check_output(output, overwrite, model)
    reporter = reporter_for(quiet)
    from text2token.corpus.prepare import Corpus, temporary_corpus
    from text2token.export.sparse import build_sparse

    documents = None
    with contextlib.ExitStack() as stack:
        if corpus is None:
            prepared = Path(model.rstrip("/") + ".run") / "corpus"
            if not (prepared / "summary.json").exists():
                raise UsageError(f"{prepared}: is not there; give text to learn the words from: --corpus FILE")
            passages = Corpus.open(prepared).passages
        else:
            documents = to_read([corpus], reading_of(text_field, format, on_error))
            passages = stack.enter_context(temporary_corpus(documents, CorpusSettings(held_out=0))).passages
        build_sparse(model, passages, output, active=active, overwrite=overwrite, reporter=reporter)
    warn(documents)
    if not quiet:
        print(f"Sparse encoder: {output}. Use it: SparseEncoder({str(output)!r})")
