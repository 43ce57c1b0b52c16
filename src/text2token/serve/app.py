"""The application: which path answers what. What blocks runs in threads; the model has one of its own (`batching`)."""

import base64
import re
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, field_validator
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp
from torch import Tensor
from torch.nn.functional import normalize

from text2token.errors import Text2TokenError, UsageError
from text2token.model.backbone import Role
from text2token.serve import answers
from text2token.serve.batching import Batcher, Overloaded
from text2token.serve.guard import Guard
from text2token.serve.limits import Limits
from text2token.serve.metrics import Metrics
from text2token.serve.refusal import Refused
from text2token.serve.service import Service

PAGE = Path(__file__).parent / "page"
JSON = "application/json"
ROOT_PATH = re.compile(r"(/[\w.~-]+)*", re.ASCII)
WORDS, HITS = 8, 10  # where nobody says how many


# In a question null is the same as not given: OpenAI's API takes it, and clients send it for whatever nobody has set.


class EmbeddingRequest(BaseModel):
    """As OpenAI has it, and `input_type` for models with a prompt for each; what else is sent is ignored."""

    input: str | list[str]
    model: str | None = None
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    input_type: Role | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _no_tokens(cls, given: Any) -> Any:
        first = given[0] if isinstance(given, list) and given else ""
        if isinstance(first, int | list):
            raise ValueError("token ids cannot be embedded here, for they are another tokenizer's. Send strings")
        return given


class LensRequest(BaseModel):
    """Texts to read, or two to compare, or both; `k` words each."""

    texts: list[str] | None = []
    pair: tuple[str, str] | None = None
    k: int | None = Field(None, ge=1)
    model: str | None = None


Mode = Literal["hybrid", "dense", "sparse"]
Values = Annotated[list[str], pydantic.BeforeValidator(lambda given: [given] if isinstance(given, str) else given)]


class SearchRequest(BaseModel):
    """`filters`: field → the values, one of which a hit must have."""

    query: str
    k: int | None = Field(None, ge=1)
    mode: Mode | None = "hybrid"
    filters: dict[str, Values] | None = {}
    model: str | None = None


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

    With `api_key`, all but the page and /healthz asks for it. `hosts`, where given, are the only names it answers to.
    `root_path` is the part of the address that a proxy before it answers at, such as /embedder; it may take it off or leave
    it. `names` are what clients may call the model besides its own name. Raises `UsageError` for a root path that is none.
    """
    limits = limits or Limits()
    if not ROOT_PATH.fullmatch(root_path):
        raise UsageError(f"root_path is {root_path!r}; it must be like /embedder, without a slash at its end")
    names = tuple(dict.fromkeys([service.name, *names]))
    shown = (PAGE / "index.html").read_text(encoding="utf-8").replace('="/page/', f'="{root_path}/page/')
    batcher = Batcher(service.encoder, limits, lambda *batch: metrics.batch(*batch))
    metrics = Metrics(lambda: batcher.waiting_texts)
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(batcher.close)
        service.close()

    app = FastAPI(
        title="text2token",
        lifespan=lifespan,
        redirect_slashes=False,  # it would send clients from https to http, and `Guard` takes the slash off
        responses={"4XX": {"model": answers.Refusal}, "5XX": {"model": answers.Refusal}},
        docs_url=None,  # its page and the next one's ask others for scripts
        redoc_url=None,
    )
    app.mount("/page", StaticFiles(directory=PAGE))
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Text2TokenError, _mendable)
    app.add_exception_handler(Overloaded, _busy)
    app.add_exception_handler(Exception, _broken)

    def called(model: str) -> str:
        """Return the name of the model, or refuse another one: its vectors would be another space's."""
        if model not in names:
            here = ", ".join(map(repr, names))
            said = f"the model {model[:200]!r} is not here; this server has {here}"
            raise Refused(404, said, param="model", code="model_not_found")
        return model

    def card(name: str) -> dict[str, Any]:
        index = service.index and {"documents": service.index.count, "fields": service.index.card.fields}
        reader = service.reader and {"reads": service.reader.card.reads, "words": len(service.reader.lexicon)}
        about = {"id": name, "object": "model", "created": started, "owned_by": "text2token"}
        return about | {"dimensions": service.dimension, "lens": reader, "index": index, "limits": asdict(limits)}

    async def embedded(texts: Sequence[str], model: str | None, param: str, role: Role | None = None) -> tuple[Tensor, int]:
        """Return the vectors, shape (texts, dimension), and how many tokens the model read; each text is embedded once."""
        if model is not None:
            called(model)
        if not 0 < len(texts) <= limits.texts:
            raise Refused(400, f"{param}: {len(texts):,} texts; send from 1 to {limits.texts:,} at a time", param=param)
        for place, text in enumerate(texts):
            if not text.strip():
                raise Refused(400, f"{param}: text {place} is empty; there is nothing to embed", param=param)
            if not _is_unicode(text):
                raise Refused(400, f"{param}: text {place} holds half a surrogate pair, which is no character", param=param)
            if len(text) > limits.characters:
                raise Refused(
                    400,
                    f"{param}: text {place} has {len(text):,} characters; at most {limits.characters:,} can be read",
                    param=param,
                    code="string_above_max_length",
                )
        batcher.check_room(1)  # a full queue is told before anything is worked on
        once = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        tokens = await run_in_threadpool(service.count_tokens, list(once))
        vectors = await batcher.embed(list(once), tokens, role)
        rows = [once[text] for text in texts]
        return vectors[rows], sum(tokens[row] for row in rows)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(shown)

    @app.get("/healthz", responses={200: {"model": answers.Health}})
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def numbers() -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", responses={200: {"model": answers.Models}})
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [card(name) for name in names]})

    @app.get("/v1/models/{model:path}", responses={200: {"model": answers.Model}})
    async def one_model(model: str) -> Response:
        return JSONResponse(card(called(model)))

    @app.post("/v1/embeddings", responses={200: {"model": answers.Embeddings}})
    async def embeddings(asked: EmbeddingRequest) -> Response:
        if asked.dimensions is not None and not 1 <= asked.dimensions <= service.dimension:
            raise Refused(
                400, f"dimensions: {asked.dimensions}; this model has 1 to {service.dimension}", param="dimensions"
            )
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        vectors, tokens = await embedded(texts, asked.model, "input", asked.input_type)
        content = await run_in_threadpool(
            _embeddings, vectors, asked.dimensions, asked.encoding_format, asked.model or service.name, tokens
        )
        return Response(content, media_type=JSON)

    @app.post("/v1/lens", responses={200: {"model": answers.Read}})
    async def lens(asked: LensRequest) -> Response:
        if not service.reader:
            raise Refused(
                404,
                f"{service.name} has no reader of its embeddings. Learn one and start again: "
                "text2token lens fit MODEL --corpus FILE --save",
                code="no_lens",
            )
        k = _at_most(limits.words, asked.k, WORDS)
        texts = asked.texts or []
        vectors, tokens = await embedded([*texts, *(asked.pair or ())], asked.model, "texts" if texts else "pair")
        content: dict[str, Any] = {"model": asked.model or service.name, "reads": service.reader.card.reads}
        said = await run_in_threadpool(service.says, texts, vectors[: len(texts)], k) if texts else []
        content["texts"] = [{"words": [asdict(word) for word in words]} for words in said]
        if asked.pair:
            pair = await run_in_threadpool(service.pair, vectors[-2], vectors[-1], k)
            shares = {name: getattr(pair, name) for name in ("cosine", "common", "explained", "rest")}
            content["pair"] = {**shares, "words": [word._asdict() for word in pair]}
        return JSONResponse({**content, "usage": _usage(tokens)})

    @app.post("/v1/search", responses={200: {"model": answers.Search}})
    async def search(asked: SearchRequest) -> Response:
        if not service.index:
            raise Refused(404, "this server has no index. Start it with --index DIR", code="no_index")
        k, mode, filters = _at_most(limits.hits, asked.k, HITS), asked.mode or "hybrid", asked.filters or {}
        if (values := sum(map(len, filters.values()))) > limits.filters:
            said = f"filters: {values:,} values; at most {limits.filters:,} can be asked for"
            raise Refused(400, said, param="filters")
        vectors, tokens = await embedded([asked.query], asked.model, "query", "query")
        hits = await run_in_threadpool(service.search, asked.query, vectors[0], k, mode, filters)
        content: dict[str, Any] = {"model": asked.model or service.name, "mode": mode}
        content |= {"hits": [asdict(hit) for hit in hits], "usage": _usage(tokens)}
        return Response(await run_in_threadpool(to_json, content), media_type=JSON)

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

    for asked, highest in most.items():
        for name, schema in description["components"]["schemas"][asked.__name__]["properties"].items():
            if name != "model":
                bound(schema, highest)
    return description


def _embeddings(vectors: Tensor, dimensions: int | None, encoding: str | None, model: str, tokens: int) -> bytes:
    """Return the answer of /v1/embeddings, of unit length; a row at a time, so that other threads get their turn."""
    vectors = normalize(vectors[:, :dimensions])
    rows = []
    for index, vector in enumerate(vectors.to(torch.float32).numpy()):
        numbers = base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()
        rows.append(to_json({"object": "embedding", "index": index, "embedding": numbers}))
    rest = to_json({"model": model, "usage": _usage(tokens)})
    return b'{"object":"list","data":[' + b",".join(rows) + b"]," + rest[1:]


def _is_unicode(text: str) -> bool:
    """Say whether no halves of surrogate pairs are in `text`: JSON can spell them, no tokenizer can read them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _at_most(limit: int, asked: int | None, default: int) -> int:
    """Return how many are asked for, where nothing is said `default`, and never more than `limit`."""
    if asked is not None and asked > limit:
        raise Refused(400, f"k: {asked}; at most {limit} can be had", param="k")
    return asked or min(default, limit)


async def _refused(request: Request, error: Exception) -> Response:
    """Answer what `Refused` says, and the framework's own refusals (no such path, no such method) in the same shape."""
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
    return Refused(500, "the server failed at this request; its log says why").response()
