"""`lens`: the decoded tokens of an embedding."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from text2token.cli.common import reading_of, reporter_for, show_json, to_read, warn
from text2token.cli.options import Format, Json, Model, OnError, Quiet, TextField
from text2token.cli.verbs import Verbs
from text2token.errors import UsageError
from text2token.recipe import ReadingSettings

if TYPE_CHECKING:
    from text2token.corpus.prepare import Corpus
    from text2token.lens.open import DecodedToken, ReadableModel
    from text2token.progress import Reporter


class Verb(Verbs):
    """The verbs of `lens`."""

    default = "read"
    earlier = {"--pair": ("pair", "--pair"), "--metrics": ("score", "--metrics"), "--save": ("fit", "--save")}  # noqa: RUF012


app = typer.Typer(cls=Verb, no_args_is_help=True, rich_markup_mode=None)
K = Annotated[int, typer.Option("-k", help="How many words.", min=1)]
Compare = Annotated[str | None, typer.Option(help="Another embedder, to read side by side.", show_default=False)]
Head = Annotated[
    str | None,
    typer.Option(
        help="fit: the reader that was learnt from words; or a backbone whose head shares the embedder's space. "
        "Default: the reader beside the model, or the last one that was learnt.",
        show_default=False,
    ),
]
# learning is for `lens fit`, but was part of reading before there were verbs
Learn = Annotated[str | None, typer.Option("--corpus", hidden=True)]
Tokens = Annotated[
    str | None,
    typer.Option("--backbone", help="Whose tokenizer decides what a word is. Default: the model's.", show_default=False),
]
HiddenTokens = Annotated[str | None, typer.Option("--backbone", hidden=True)]


@app.callback()
def lens() -> None:
    """Show the decoded tokens of embeddings. `lens MODEL TEXT` means `lens read MODEL TEXT`."""


@app.command()
def read(
    model: Model,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts to read, or - for lines of standard input.", show_default=False)
    ] = None,
    file: Annotated[
        str | None, typer.Option(help="Read the texts of a file or glob, of any kind that train reads.", show_default=False)
    ] = None,
    k: K = 8,
    compare: Compare = None,
    head: Head = None,
    corpus: Learn = None,
    backbone: HiddenTokens = None,
    text_field: TextField = None,
    format: Format = None,
    on_error: OnError = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Show the decoded tokens of embeddings, in the text and beyond it."""
    if not (texts or file or (head and corpus)):
        raise UsageError("nothing to read: give texts, - for standard input, or --file FILE")
    reporter, reading, documents = reporter_for(quiet), reading_of(text_field, format, on_error), None
    given = [text for text in texts or [] if text != "-"]
    if sources := [*(["-"] if "-" in (texts or []) else []), *([file] if file else [])]:
        documents = to_read(sources, reading)
        given += [document.text for document in documents if document.text.strip()]
    decoded = []
    with _reading(_names(model, compare), head, backbone, corpus, reading, reporter) as (models, _):
        for one in models if given else []:
            with reporter.progress("Embedding", len(given), "texts") as progress:
                decoded.append(one.decode(given, k, progress))
    warn(documents)
    if json_:
        show_json([_named(one) | {"texts": _texts(given, words)} for one, words in zip(models, decoded, strict=True)])
    elif decoded:
        from text2token.cli.show import show_words

        show_words(given, models, decoded)


@app.command()
def pair(
    model: Model,
    texts: Annotated[list[str] | None, typer.Argument(metavar="A B", help="Two texts.", show_default=False)] = None,
    k: K = 8,
    compare: Compare = None,
    head: Head = None,
    corpus: Learn = None,
    backbone: HiddenTokens = None,
    pair_: Annotated[tuple[str, str] | None, typer.Option("--pair", hidden=True)] = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Show which words make two texts similar, as shares of their cosine."""
    both = list(pair_ or texts or [])
    if len(both) != 2:
        raise UsageError(f"two texts make a pair, here are {len(both)}; put each in quotation marks")
    reporter = reporter_for(quiet)
    with _reading(_names(model, compare), head, backbone, corpus, ReadingSettings(), reporter) as (models, _):
        pairs = [one.pair(both[0], both[1], k) for one in models]
    if json_:
        parts = ("cosine", "common", "explained", "rest")
        found = [
            {"texts": both, **{name: getattr(one, name) for name in parts}, "words": [word._asdict() for word in one]}
            for one in pairs
        ]
        show_json([_named(one) | {"pair": content} for one, content in zip(models, found, strict=True)])
    else:
        from text2token.cli.show import show_pair

        show_pair(both[0], both[1], [(one.name, parts) for one, parts in zip(models, pairs, strict=True)])


@app.command()
def fit(
    model: Model,
    corpus: Annotated[str, typer.Option(help="Text to learn from: a file, a glob.")],
    head: Annotated[
        str, typer.Option(help="fit: learn from words alone; or a backbone whose head shares the embedder's space.")
    ] = "fit",
    backbone: Tokens = None,
    save: Annotated[
        bool, typer.Option("--save", help="Keep the reader in the model's folder, for whoever gets it.")
    ] = False,
    text_field: TextField = None,
    format: Format = None,
    on_error: OnError = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Learn to read any embedder from text without labels; the other verbs use what was learnt last."""
    if save and not Path(model).is_dir():
        raise UsageError(f"--save keeps the reader in the model's folder, and {model} is none")
    reading, reporter = reading_of(text_field, format, on_error), reporter_for(quiet)
    from text2token.lens.open import save_beside

    with _reading([model], head, backbone, corpus, reading, reporter) as ((learnt,), _):
        if save:
            save_beside(learnt)
    if json_:
        show_json([_named(learnt)])
    elif not quiet:
        print(f"Reader: {len(learnt.reader.lexicon):,} words, learnt" + (f" and kept in {model}" if save else ""))


@app.command()
def score(
    model: Model,
    corpus: Annotated[str, typer.Option(help="Text to measure on: a file, a glob.")],
    compare: Compare = None,
    head: Head = None,
    backbone: HiddenTokens = None,
    metrics: Annotated[bool, typer.Option("--metrics", hidden=True)] = True,
    text_field: TextField = None,
    format: Format = None,
    on_error: OnError = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Measure the decoded tokens against the words of held-out texts: Hit@k, LAR and GAR."""
    names = _names(model, compare)
    reporter = reporter_for(quiet)
    with _reading(names, head, backbone, corpus, reading_of(text_field, format, on_error), reporter, measure=True) as opened:
        models, unseen = opened
        assert unseen
        alignments = [one.alignment(unseen, reporter) for one in models]
    if json_:
        show_json([_named(one) | {"metrics": asdict(found)} for one, found in zip(models, alignments, strict=True)])
    else:
        from text2token.cli.show import show_alignment

        show_alignment(list(zip(names, alignments, strict=True)))


@contextlib.contextmanager
def _reading(
    names: Sequence[str],
    head: str | None,
    backbone: str | None,
    corpus: str | None,
    reading: ReadingSettings,
    reporter: "Reporter",
    *,
    measure: bool = False,
) -> "Iterator[tuple[list[ReadableModel], Corpus | None]]":
    """Yield the models with their readers, learnt from `corpus` if `head` is given, and that corpus. No model has seen its
    held-out documents; to `measure` on it, notes about that are shown.
    """
    if backbone and head != "fit":
        raise UsageError(
            "--backbone decides what a word is when a reader is learnt from words alone: it goes with --head fit"
        )
    from text2token.evaluation.held_out import unseen_corpus
    from text2token.lens.open import HowToRead, open_readable
    from text2token.progress import Silent

    with contextlib.ExitStack() as stack:
        documents, unseen = None, None
        if corpus:
            documents = to_read([corpus], reading)
            notes = reporter if measure else Silent()
            unseen = stack.enter_context(unseen_corpus(documents, names, reporter=notes))
        yield [open_readable(name, HowToRead(head, backbone), unseen, reporter) for name in names], unseen
        warn(documents)


def _names(model: str, compare: str | None) -> list[str]:
    return [model, compare] if compare else [model]


def _texts(texts: "Sequence[str]", decoded: "Sequence[Sequence[DecodedToken]]") -> list[dict[str, Any]]:
    rows = zip(texts, decoded, strict=True)
    return [{"text": text, "words": [asdict(word) for word in words]} for text, words in rows]


def _named(model: "ReadableModel") -> dict[str, Any]:
    return {"model": model.name, "reads": model.reader.card.reads}
