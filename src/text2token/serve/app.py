"""The application: which path answers what. What blocks runs in threads; the model has one of its own (`batching`)."""

import base64
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
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp
from torch import Tensor
from torch.nn.functional import normalize

from text2token.errors import Text2TokenError
from text2token.serve import answers
from text2token.serve.batching import Batcher, Overloaded
from text2token.serve.guard import Guard
from text2token.serve.limits import Limits
from text2token.serve.metrics import Metrics
from text2token.serve.refusal import Refused
from text2token.serve.service import Service

PAGE = Path(__file__).parent / "page"
JSON = "application/json"
WORDS, HITS = 8, 10  # where nobody says how many


class EmbeddingRequest(BaseModel):
    """As OpenAI has it; what else is sent is ignored."""

    input: str | list[str]
    model: str | None = None
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] = "float"

    @field_validator("input", mode="before")
    @classmethod
    def _no_tokens(cls, given: Any) -> Any:
        first = given[0] if isinstance(given, list) and given else ""
        if isinstance(first, int | list):
            raise ValueError("token ids cannot be embedded here, for they are another tokenizer's. Send strings")
        return given


class LensRequest(BaseModel):
    """Texts to read, or two to compare, or both; `k` words each."""

    texts: list[str] = []
    pair: tuple[str, str] | None = None
    k: int | None = Field(None, ge=1)
    model: str | None = None


class SearchRequest(BaseModel):
    """`filters`: field → the values, one of which a hit must have."""

    query: str
    k: int | None = Field(None, ge=1)
    mode: Literal["hybrid", "dense", "sparse"] = "hybrid"
    filters: dict[
        str, Annotated[list[str], pydantic.BeforeValidator(lambda given: [given] if isinstance(given, str) else given)]
    ] = {}
    model: str | None = None


def create_app(
    service: Service,
    limits: Limits | None = None,
    *,
    api_key: str | None = None,
    hosts: Collection[str] | None = None,
) -> ASGIApp:
    """Return the server of an open `service` as an ASGI application, for uvicorn or any other server; it closes the service.

    With `api_key`, all but the page and /healthz asks for it. `hosts`, where given, are the only names it answers to.
    """
    limits = limits or Limits()
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
        responses={"4XX": {"model": answers.Refusal}, "5XX": {"model": answers.Refusal}},
        docs_url=None,  # its page and the next one's ask others for scripts
        redoc_url=None,
    )
    app.mount("/page", StaticFiles(directory=PAGE))
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Text2TokenError, _mendable)
    app.add_exception_handler(Exception, _broken)

    async def embedded(texts: Sequence[str], model: str | None, param: str) -> tuple[Tensor, int]:
        """Return the vectors, shape (texts, dimension), and how many tokens the model read; each text is embedded once."""
        if model is not None and model != service.name:
            raise Refused(
                404,
                f"the model {model!r} is not here; this server has {service.name!r}",
                param="model",
                code="model_not_found",
            )
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
        vectors = await batcher.embed(list(once), tokens)
        rows = [once[text] for text in texts]
        return vectors[rows], sum(tokens[row] for row in rows)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    @app.get("/healthz", responses={200: {"model": answers.Health}})
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def numbers() -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", responses={200: {"model": answers.Models}})
    async def models() -> Response:
        index = service.index and {"documents": service.index.count, "fields": service.index.card.fields}
        reader = service.reader and {"reads": service.reader.card.reads, "words": len(service.reader.lexicon)}
        card = {"id": service.name, "object": "model", "created": started, "owned_by": "text2token"}
        card |= {"dimensions": service.dimension, "lens": reader, "index": index, "limits": asdict(limits)}
        return JSONResponse({"object": "list", "data": [card]})

    @app.post("/v1/embeddings", responses={200: {"model": answers.Embeddings}})
    async def embeddings(asked: EmbeddingRequest) -> Response:
        if asked.dimensions is not None and not 1 <= asked.dimensions <= service.dimension:
            raise Refused(
                400, f"dimensions: {asked.dimensions}; this model has 1 to {service.dimension}", param="dimensions"
            )
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        vectors, tokens = await embedded(texts, asked.model, "input")
        content = await run_in_threadpool(
            _embeddings, vectors, asked.dimensions, asked.encoding_format, service.name, tokens
        )
        return Response(content, media_type=JSON)

    @app.post("/v1/lens", responses={200: {"model": answers.Read}})
    async def lens(asked: LensRequest) -> Response:
        if not service.reader:
            raise Refused(
                404,
                f"{service.name} has no reader of its embeddings. Learn one and start again: "
                "text2token lens MODEL --head fit --corpus FILE --save",
                code="no_lens",
            )
        k = _at_most(limits.words, asked.k, WORDS)
        vectors, tokens = await embedded(
            [*asked.texts, *(asked.pair or ())], asked.model, "texts" if asked.texts else "pair"
        )
        content: dict[str, Any] = {"model": service.name, "reads": service.reader.card.reads}
        said = await run_in_threadpool(service.says, asked.texts, vectors[: len(asked.texts)], k) if asked.texts else []
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
        k = _at_most(limits.hits, asked.k, HITS)
        vectors, tokens = await embedded([asked.query], asked.model, "query")
        hits = await run_in_threadpool(service.search, asked.query, vectors[0], k, asked.mode, asked.filters)
        content = {"model": service.name, "mode": asked.mode, "hits": [asdict(hit) for hit in hits], "usage": _usage(tokens)}
        return Response(await run_in_threadpool(to_json, content), media_type=JSON)

    return Guard(app, limits, metrics, api_key, hosts)


def _embeddings(vectors: Tensor, dimensions: int | None, encoding: str, model: str, tokens: int) -> bytes:
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
    if isinstance(error, Overloaded):
        headers = {"Retry-After": str(error.retry_after)}
        return Refused(429, str(error), code="rate_limit_exceeded", headers=headers).response()
    return Refused(400, str(error)).response()


async def _broken(request: Request, error: Exception) -> Response:
    return Refused(500, "the server failed at this request; its log says why").response()
