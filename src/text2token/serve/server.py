"""`text2token serve`: the application on a socket, until it is stopped."""

import asyncio
import contextlib
import math
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from text2token.errors import UsageError, reason
from text2token.progress import Reporter, Silent
from text2token.recipe import DType
from text2token.serve.app import create_app
from text2token.serve.limits import Limits
from text2token.serve.service import open_service

KEY_VARIABLE = "TEXT2TOKEN_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
GRACE = 5.0  # seconds beyond the time that a request has
# Seconds that a silent connection is kept: longer than clients keep theirs (5 to 60), for whoever sends over one that the
# server is just closing gets an error. With uvicorn's 5 that happened in the open loop of a load test.
KEEP_ALIVE = 75


def serve(
    model: str,
    index: Path | None = None,
    *,
    host: str = LOOPBACK[0],
    port: int = 8000,
    api_key: str | None = None,
    limits: Limits | None = None,
    dtype: DType = "auto",
    root_path: str = "",
    names: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> None:
    """Serve `model`, and `index` where given, until SIGTERM or an interrupt; what has begun is finished.

    `port` 0 is any free one; `root_path` and `names` are those of `create_app`. Raises a `Text2TokenError` when the address,
    the model or the index cannot be used.
    """
    reporter, limits = reporter or Silent(), limits or Limits()
    with _bound(host, port) as listening:  # before the model is loaded: a port in use is refused at once
        reporter.note(f"Loading {model} …")
        service = open_service(model, index, dtype)
        try:
            local = host in LOOPBACK
            hosts = LOOPBACK if local else None
            app = create_app(service, limits, api_key=api_key, hosts=hosts, root_path=root_path, names=names)
            if not (local or api_key):
                reporter.note(f"Whoever reaches {host} can use this server: require a key with --api-key-file FILE.")
            documents = f", {service.index.count:,} documents to search" if service.index else ""
            lens = "" if service.reader else ", no lens (text2token lens fit MODEL --corpus FILE --save)"
            shown = f"[{host}]" if ":" in host else host
            address = f"http://{shown}:{listening.getsockname()[1]}"
            ready = f"{service.name}: {service.dimension} dimensions{documents}{lens}.\n{address}  (Ctrl-C stops)"
            with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again when everything has been finished
                _Server(_settings(app, limits), lambda: reporter.note(ready)).run(sockets=[listening])
        finally:
            service.close()
    reporter.note("Stopped.")


class _Server(uvicorn.Server):
    """Calls `started` once it answers and from when on a signal ends it in order."""

    def __init__(self, settings: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(settings)
        self._say = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._say()


class _Connection(H11Protocol):
    """Is closed when the headers of a request do not arrive in time: silent connections must not fill the server.

    uvicorn itself waits for ever for a first request, and for one whose headers come a byte at a time.
    """

    seconds = math.inf
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._wait()

    def _wait(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if self._waiting and (answering or self.transport.is_closing()):
            self._waiting.cancel()
            self._waiting = None
        elif not (self._waiting or answering):
            self._waiting = self.loop.call_later(self.seconds, self.transport.close)


def _settings(app: ASGIApp, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=type("Connection", (_Connection,), {"seconds": limits.seconds}),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=int(limits.seconds + GRACE),
    )


def read_api_key(file: Path | None) -> str | None:
    """Return the key that `file` holds, else that of the environment, else None; `UsageError` where it cannot be one."""
    if file is None:
        if (given := os.environ.get(KEY_VARIABLE)) is None:
            return None
    else:
        try:
            given = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file}: no key can be read from it ({reason(error)})") from None
    key = given.strip()
    if not (key.isascii() and key.isprintable() and key) or " " in key:
        raise UsageError(
            f"{file or KEY_VARIABLE}: holds no key; it must be one line of letters, digits and signs, without spaces"
        )
    return key


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except (OSError, OverflowError) as error:
        raise UsageError(f"{host}:{port} cannot be listened on ({reason(error)}). Choose another --host or --port") from None
    return listening
