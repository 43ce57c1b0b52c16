"""What the server answers to each path. What blocks runs in threads; the model has a thread to itself (`batching`)."""

import base64
import time
from collections.abc import Sequence
from dataclasses import asdict

import torch
from fastapi import APIRouter
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from torch import Tensor
from torch.nn.functional import normalize

from text2token.model.backbone import Role
from text2token.serve import schema
from text2token.serve.batching import Batcher
from text2token.serve.limits import Limits
from text2token.serve.metrics import Metrics
from text2token.serve.schema import JSON, EmbeddingRequest, LensRequest, Refused, SearchRequest
from text2token.serve.service import Service

WORDS, HITS = 8, 10  # by default


class Routes:
    """The endpoints of one server; `names` are what clients may call the model, `page` is the page at /."""

    def __init__(self, service: Service, limits: Limits, metrics: Metrics, names: Sequence[str], page: str) -> None:
        self.service, self.limits, self.metrics, self.names, self.shown = service, limits, metrics, names, page
        self.batcher = Batcher(service.encoder, limits, metrics.batch)
        self.started = int(time.time())
        metrics.count_waiting(lambda: self.batcher.waiting_texts)

    def router(self) -> APIRouter:
        """Return which method answers which path."""
        router = APIRouter()
        router.get("/", include_in_schema=False)(self.page)
        router.get("/healthz", responses={200: {"model": schema.Health}})(self.health)
        router.get("/metrics", response_class=PlainTextResponse)(self.numbers)
        router.get("/v1/models", responses={200: {"model": schema.Models}})(self.models)
        router.get("/v1/models/{model:path}", responses={200: {"model": schema.Model}})(self.one_model)
        router.post("/v1/embeddings", responses={200: {"model": schema.Embeddings}})(self.embeddings)
        router.post("/v1/lens", responses={200: {"model": schema.Read}})(self.lens)
        router.post("/v1/search", responses={200: {"model": schema.Search}})(self.search)
        return router

    async def page(self) -> Response:
        return HTMLResponse(self.shown)

    async def health(self) -> Response:
        return schema.Health(status="ok").response()

    async def numbers(self) -> Response:
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4")

    async def models(self) -> Response:
        return schema.Models(object="list", data=[self._card(name) for name in self.names]).response()

    async def one_model(self, model: str) -> Response:
        return self._card(self._called(model)).response()

    async def embeddings(self, body: EmbeddingRequest) -> Response:
        dimension = self.service.dimension
        if body.dimensions is not None and not 1 <= body.dimensions <= dimension:
            raise Refused(400, f"dimensions: {body.dimensions}; this model has 1 to {dimension}", param="dimensions")
        texts = [body.input] if isinstance(body.input, str) else body.input
        vectors, tokens = await self._embedded(texts, body.model, "input", body.input_type)
        model = body.model or self.service.name
        content = await run_in_threadpool(
            _embeddings, vectors, body.dimensions, body.encoding_format, model, schema.Usage.of(tokens)
        )
        return Response(content, media_type=JSON)

    async def lens(self, body: LensRequest) -> Response:
        service = self.service
        if not service.reader:
            raise Refused(
                404,
                f"{service.name} has no reader of its embeddings. Learn one and start again: "
                "text2token lens fit MODEL --corpus FILE --save",
                code="no_lens",
            )
        k = _at_most(self.limits.words, body.k, WORDS)
        texts = body.texts or []
        vectors, tokens = await self._embedded([*texts, *(body.pair or ())], body.model, "texts" if texts else "pair")
        decoded = await run_in_threadpool(service.decode, texts, vectors[: len(texts)], k) if texts else []
        answer = schema.Read(
            model=body.model or service.name,
            reads=service.reader.card.reads,
            texts=[schema.ReadText(words=[schema.DecodedToken.model_validate(word) for word in words]) for words in decoded],
            usage=schema.Usage.of(tokens),
        )
        if body.pair:
            pair = await run_in_threadpool(service.pair, vectors[-2], vectors[-1], k)
            answer.pair = schema.ReadPair(
                cosine=pair.cosine,
                common=pair.common,
                explained=pair.explained,
                rest=pair.rest,
                words=[schema.SharedWord.model_validate(word) for word in pair],
            )
        return answer.response()

    async def search(self, body: SearchRequest) -> Response:
        if not self.service.index:
            raise Refused(404, "this server has no index. Start it with --index DIR", code="no_index")
        limits, mode, filters = self.limits, body.mode or "hybrid", body.filters or {}
        k = _at_most(limits.hits, body.k, HITS)
        if (values := sum(map(len, filters.values()))) > limits.filters:
            raise Refused(400, f"filters: {values:,} values; at most {limits.filters:,} are allowed", param="filters")
        vectors, tokens = await self._embedded([body.query], body.model, "query", "query")

        def answer() -> Response:
            hits = self.service.search(body.query, vectors[0], k, mode, filters)
            found = [schema.Found.model_validate(hit) for hit in hits]
            model = body.model or self.service.name
            return schema.Search(model=model, mode=mode, hits=found, usage=schema.Usage.of(tokens)).response()

        return await run_in_threadpool(answer)

    def _called(self, model: str) -> str:
        """Return the name of the model, or refuse another one, whose vectors are of another space."""
        if model not in self.names:
            here = ", ".join(map(repr, self.names))
            message = f"the model {model[:200]!r} is not here; this server has {here}"
            raise Refused(404, message, param="model", code="model_not_found")
        return model

    def _card(self, name: str) -> schema.Model:
        index, reader = self.service.index, self.service.reader
        return schema.Model(
            id=name,
            object="model",
            created=self.started,
            owned_by="text2token",
            dimensions=self.service.dimension,
            lens=schema.Lens(reads=reader.card.reads, words=len(reader.lexicon)) if reader else None,
            index=schema.SearchedIndex(documents=index.count, fields=list(index.card.fields)) if index else None,
            limits=asdict(self.limits),
        )

    async def _embedded(
        self, texts: Sequence[str], model: str | None, param: str, role: Role | None = None
    ) -> tuple[Tensor, int]:
        """Return the vectors, shape (texts, dimension), and how many tokens the model read; each text is embedded once."""
        if model is not None:
            self._called(model)
        if not 0 < len(texts) <= self.limits.texts:
            raise Refused(400, f"{param}: {len(texts):,} texts; send from 1 to {self.limits.texts:,} at a time", param=param)
        for place, text in enumerate(texts):
            if not text.strip():
                raise Refused(400, f"{param}: text {place} is empty; there is nothing to embed", param=param)
            if not _is_unicode(text):
                raise Refused(400, f"{param}: text {place} holds half a surrogate pair, which is no character", param=param)
            if len(text) > self.limits.characters:
                raise Refused(
                    400,
                    f"{param}: text {place} has {len(text):,} characters; at most {self.limits.characters:,} can be read",
                    param=param,
                    code="string_above_max_length",
                )
        self.batcher.check_room(1)  # a full queue is refused before any work
        once = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        tokens = await run_in_threadpool(self.service.count_tokens, list(once))
        vectors = await self.batcher.embed(list(once), tokens, role)
        rows = [once[text] for text in texts]
        return vectors[rows], sum(tokens[row] for row in rows)


def _embeddings(vectors: Tensor, dimensions: int | None, encoding: str | None, model: str, usage: schema.Usage) -> bytes:
    """Return the answer of /v1/embeddings, of unit length; a row at a time, so that other threads get their turn."""
    vectors = normalize(vectors[:, :dimensions])
    rows = []
    for index, vector in enumerate(vectors.to(torch.float32).numpy()):
        numbers = base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()
        rows.append(to_json({"object": "embedding", "index": index, "embedding": numbers}))
    rest = to_json({"model": model, "usage": usage})
    return b'{"object":"list","data":[' + b",".join(rows) + b"]," + rest[1:]


def _is_unicode(text: str) -> bool:
    """Return whether no halves of surrogate pairs are in `text`: JSON can spell them, no tokenizer can read them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _at_most(limit: int, wanted: int | None, default: int) -> int:
    """Return `wanted`, or `default` where it is None; never more than `limit`."""
    if wanted is not None and wanted > limit:
        raise Refused(400, f"k: {wanted}; at most {limit} can be had", param="k")
    return wanted or min(default, limit)
