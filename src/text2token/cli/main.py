"""The entry: the commands, exit codes, interrupts, and how commands were called before.

Results go to stdout, everything else to stderr. Exit codes are those of `errors.exit_codes`; 1 is a mistake of this package,
with its traceback.
"""

import contextlib
import importlib.metadata
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn, TextIO

import typer

from text2token.cli import export, lens
from text2token.cli.corpus import embed, static, targets
from text2token.cli.evaluate import evaluate, report
from text2token.cli.search import index, search
from text2token.cli.serve import serve
from text2token.cli.train import train
from text2token.errors import INTERRUPTED, NOBODY_READS, OutputError, Text2TokenError, exit_codes, printable, reason

# compiled kernels, one for every shape of a batch; torch's limit of 1,024 is half a gigabyte, a pass needs two dozen
KERNELS_KEPT = "64"
RESUMING = ("train", "targets", "embed", "index", "run", "quickstart")
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

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
    message = error.format_message().replace("Value error, ", "")
    if message.startswith("Usage:"):
        return message
    context = getattr(error, "ctx", None)
    command = ""
    while context and context.parent:
        command, context = f" {context.info_name}{command}", context.parent
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


for command in (train, targets, static, embed, index, search, evaluate, report, serve):
    app.command()(command)
app.add_typer(lens.app, name="lens")
app.add_typer(export.app, name="export")


@app.command("run", hidden=True, context_settings=PASSED_ON)
def _run(context: typer.Context, recipe: str) -> None:
    """Do what `train --recipe RECIPE` does."""
    _train(context, "--recipe", recipe)


@app.command("quickstart", hidden=True, context_settings=PASSED_ON)
def _quickstart(context: typer.Context, folder: Path = Path("runs/quickstart")) -> None:
    """Do what `train --recipe quickstart` does."""
    _train(context, "--recipe", "quickstart", "--output", str(folder / "model"), "--run-folder", str(folder))


def _train(called: typer.Context, *words: str) -> None:
    command = typer.main.get_group(app).commands["train"]
    with command.make_context("train", [*words, *called.args], parent=called.parent) as context:
        command.invoke(context)


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


def _interrupted(words: list[str]) -> str:
    """Return the line after an interrupt, by the words that were typed."""
    if not words or words[0] not in RESUMING:
        return "interrupted"
    return "interrupted. The same command" + (" without --overwrite" if "--overwrite" in words else "") + " resumes"


def main() -> None:
    """Run the command line: one line and an exit code for a user's mistakes, a traceback for internal ones.

    Whoever reads the results may stop before their end: that is no error, and exit code 141, as of other programs.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        kept = {name: getattr(sys.stdout, name) for name in ("encoding", "line_buffering", "write_through")}
        sys.stdout = _Results(sys.stdout.buffer, errors="replace", **kept)
    results = sys.stdout
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, _stop_once)
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars would break the bars here; read when they are imported
    for variable in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):  # read at torch's first product
        os.environ.setdefault(variable, KERNELS_KEPT)
    try:
        if app(standalone_mode=False) == INTERRUPTED:  # typer's way
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
        sys.stderr.write(f"text2token: {_interrupted(sys.argv[1:])}\n")
        sys.exit(INTERRUPTED)
