"""The door of the server: who may come in, with how much, for how long; and what every answer tells the browser.

A page of any website can send requests to a server on your machine. It cannot read the answers without CORS, which
there is not, unless its name is made to point here (DNS rebinding); so a server that listens on the loopback only answers to
the loopback's names.
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from text2token.serve.limits import Limits
from text2token.serve.metrics import Metrics
from text2token.serve.schema import Refused

SECURITY = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
OPEN, PAGE = ("/healthz", "/"), "/page/"  # what needs no key
WATCHING = ("/healthz", "/metrics")  # answered however busy the server is
NAMED = ("/", "/healthz", "/metrics", "/v1/embeddings", "/v1/lens", "/v1/models", "/v1/search")  # in metrics by their path


class Guard:
    """Wraps the whole application, its answers to internal errors too."""

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        metrics: Metrics,
        api_key: str | None,
        hosts: Collection[str] | None,
        root_path: str = "",
    ) -> None:
        self.app, self.limits, self.metrics, self.hosts, self.root_path = app, limits, metrics, hosts, root_path
        self.inside = 0  # requests at work
        self.key = None if api_key is None else _digest(api_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.monotonic(), 0
        received = 0
        path, headless = self._path(scope), scope["method"] == "HEAD"
        # the rest sees the whole path, as ASGI wants it, and HEAD as the GET whose headers it wants
        inner = {**scope, "path": self.root_path + path, "root_path": self.root_path}
        inner["method"] = "GET" if headless else scope["method"]
        self.inside += 1

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY)
                headers.setdefault("Cache-Control", "no-store" if path.startswith("/v1/") else "no-cache")
            elif headless and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limits.body_bytes:
                raise self._too_large()
            return message

        try:
            self._check(Headers(scope=scope), path)
            async with asyncio.timeout(self.limits.seconds):
                await self.app(inner, receive_limited, send_marked)
        except (Refused, TimeoutError) as problem:
            if status:  # half an answer cannot be taken back
                raise
            refused = problem if isinstance(problem, Refused) else self._too_slow()
            await refused.response()(scope, receive, send_marked)
        finally:
            self.inside -= 1
            self.metrics.request(path if path in NAMED else "other", status, time.monotonic() - started)

    def _path(self, scope: Scope) -> str:
        """Return the path that is meant: without the root path, and without a slash behind the name of an endpoint."""
        path: str = scope["path"]
        if path == self.root_path or path.startswith(f"{self.root_path}/"):
            path = path.removeprefix(self.root_path) or "/"
        bare = path.rstrip("/")
        return bare if bare in NAMED else path

    def _check(self, headers: Headers, path: str) -> None:
        """Raise `Refused` for what is wrong before the body has been read."""
        if self.hosts is not None and _name(headers.get("host", "")) not in self.hosts:
            raise Refused(421, f"this server answers to {', '.join(sorted(self.hosts))} only", code="wrong_host")
        if self.key is not None and path not in OPEN and not path.startswith(PAGE):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(given.strip()), self.key):
                raise Refused(
                    401,
                    "the API key is missing or wrong: send it as Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        if self.inside > self.limits.requests and path not in WATCHING:
            raise Refused(
                429,
                f"the server is busy with {self.limits.requests} requests. Try again in 1 s",
                code="rate_limit_exceeded",
                headers={"Retry-After": "1"},
            )
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.limits.body_bytes:
            raise self._too_large()

    def _too_large(self) -> Refused:
        limit = self.limits.body_bytes
        return Refused(
            413, f"the request is longer than {limit:,} bytes. Send fewer texts at a time", code="request_too_large"
        )

    def _too_slow(self) -> Refused:
        return Refused(
            503,
            f"the request was not answered within {self.limits.seconds:g} s. Send fewer texts at a time, or try again",
            code="timeout",
            headers={"Retry-After": "1"},
        )


def _name(host: str) -> str:
    """Return the name in a Host header, without its port; empty where there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _digest(key: str) -> bytes:
    """Return what two keys are compared by: of equal length, so that the time tells nothing of it either."""
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
