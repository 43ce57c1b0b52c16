"""`serve`."""

from pathlib import Path
from typing import Annotated

import typer

from text2token.cli.common import needing, reporter_for
from text2token.cli.options import DType, Model, Quiet


def serve(
    model: Model,
    index: Annotated[Path | None, typer.Option(help="An index made with this embedder, to search in.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.", min=0, max=65535)] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the key that clients must send. Default: TEXT2TOKEN_API_KEY, else none.")
    ] = None,
    dtype: DType = "auto",
    root_path: Annotated[
        str, typer.Option(help="The part of the address that a proxy before it answers at, such as /embedder.")
    ] = "",
    served_name: Annotated[
        list[str] | None, typer.Option(help="Another name that clients may call the model by. Repeatable.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any limit of docs/settings.md, such as seconds=30. Repeatable.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Serve an embedder over HTTP. OpenAI's embeddings, the lens, search, and a page at /."""
    reporter = reporter_for(quiet)
    with needing("serve"):
        from text2token.serve.limits import Limits
        from text2token.serve.server import read_api_key
        from text2token.serve.server import serve as serve_model
    if index:
        with needing("search"):
            import text2token.search.index  # noqa: F401
    from text2token.settings import with_assignments

    serve_model(
        model,
        index,
        host=host,
        port=port,
        api_key=read_api_key(api_key_file),
        limits=with_assignments(Limits(), set_ or []),
        dtype=dtype,
        root_path=root_path,
        names=served_name or [],
        reporter=reporter,
    )
