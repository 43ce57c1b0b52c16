"""The application: its endpoints (`routes`), its answers to mistakes, and the guard around both."""

import re
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from text2token.errors import Text2TokenError, UsageError
from text2token.serve import schema
from text2token.serve.batching import Overloaded
from text2token.serve.guard import Guard
from text2token.serve.limits import Limits
from text2token.serve.metrics import Metrics
from text2token.serve.routes import Routes
from text2token.serve.schema import EmbeddingRequest, LensRequest, Refused, SearchRequest
from text2token.serve.service import Service

PAGE = Path(__file__).parent / "page"
ROOT_PATH = re.compile(r"(/[\w.~-]+)*", re.ASCII)


def create_app(
    service: Service,
    limits: Limits | None = None,
    *,
    api_key: str | None = None,
    hosts: Collection[str] | None = None,
    root_path: str = "",
    names: Sequence[str] = (),
) -> ASGIApp:
    """Return the server of an open `service` as an ASGI application, for uvicorn or any other server; it closes the service.

    With `api_key`, all but the page and /healthz needs it. `hosts`, where given, are the only names it answers to.
    `root_path` is the part of the address that a proxy before it answers at, such as /embedder; it may take it off or leave
    it. `names` are further names of the model for clients. Raises `UsageError` for a root path that is none.
    """
    limits = limits or Limits()
    if not ROOT_PATH.fullmatch(root_path):
        raise UsageError(f"root_path is {root_path!r}; it must be like /embedder, without a slash at its end")
    names = tuple(dict.fromkeys([service.name, *names]))
    shown = (PAGE / "index.html").read_text(encoding="utf-8").replace('="/page/', f'="{root_path}/page/')
    metrics = Metrics()
    routes = Routes(service, limits, metrics, names, shown)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(routes.batcher.close)
        service.close()

    app = FastAPI(
        title="text2token",
        lifespan=lifespan,
        redirect_slashes=False,  # it would send clients from https to http, and `Guard` takes the slash off
        responses={"4XX": {"model": schema.Refusal}, "5XX": {"model": schema.Refusal}},
        docs_url=None,  # its page and the next one's load scripts from elsewhere
        redoc_url=None,
    )
    app.mount("/page", StaticFiles(directory=PAGE))
    app.include_router(routes.router())
    for kind, answer in (
        (HTTPException, _refused),
        (RequestValidationError, _invalid),
        (Text2TokenError, _mendable),
        (Overloaded, _busy),
        (Exception, _broken),
    ):
        app.add_exception_handler(kind, answer)
    app.openapi_schema = _bounded(app.openapi(), limits, service.dimension)
    return Guard(app, limits, metrics, api_key, hosts, root_path)


def _bounded(description: dict[str, Any], limits: Limits, dimension: int) -> dict[str, Any]:
    """Return OpenAPI's description of the server with what this one takes: how many texts and words, and how long."""
    most = {EmbeddingRequest: dimension, LensRequest: limits.words, SearchRequest: limits.hits}  # of the integer of each

    def bound(schema: dict[str, Any], highest: int) -> None:
        for inner in (*schema.get("anyOf", ()), *schema.get("prefixItems", ())):
            bound(inner, highest)
        match schema.get("type"):
            case "string" if "enum" not in schema:
                schema |= {"minLength": 1, "maxLength": limits.characters, "pattern": r"\S"}
            case "integer":
                schema |= {"minimum": 1, "maximum": highest}
            case "array" if "items" in schema:
                schema["maxItems"] = limits.texts
                bound(schema["items"], highest)

    for request, highest in most.items():
        for name, described in description["components"]["schemas"][request.__name__]["properties"].items():
            if name != "model":
                bound(described, highest)
    return description


async def _refused(request: Request, error: Exception) -> Response:
    """Answer `Refused`, and the framework's refusals (no such path, no such method) in the same shape."""
    if isinstance(error, Refused):
        return error.response()
    assert isinstance(error, HTTPException)
    return Refused(
        error.status_code, f"{request.method} {request.url.path}: {error.detail}", headers=error.headers
    ).response()


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"][1:]]  # ("body", parameter, which kind or element of it, …)
    if not place or first["type"] == "json_invalid":
        kind = request.headers.get("content-type", "none")
        return Refused(400, f"the body must be a JSON object, with Content-Type: application/json (it is {kind})").response()
    return Refused(400, f"{place[0]}: {first['msg'].removeprefix('Value error, ')}", param=place[0]).response()


async def _mendable(request: Request, error: Exception) -> Response:
    return Refused(400, str(error)).response()


async def _busy(request: Request, error: Exception) -> Response:
    assert isinstance(error, Overloaded)
    headers = {"Retry-After": str(error.retry_after)}
    return Refused(429, str(error), code="rate_limit_exceeded", headers=headers).response()


async def _broken(request: Request, error: Exception) -> Response:
    return Refused(500, "the server failed at this request; its log has the reason").response()
