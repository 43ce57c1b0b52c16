"""A server gives every client its own vectors, turns away what it cannot do in words, and finishes what it has begun."""

import base64
import contextlib
import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import torch
import uvicorn
from conftest import PATIENCE, TEXTS, BackboneMaker
from serving import DOCUMENTS, HOSTILE, RIGHT_TO_LEFT, make_index, make_model, running
from test_cli import COMMAND
from torch import Tensor

from text2token.errors import ModelError, OutputError, UsageError
from text2token.lens.reader import open_reader
from text2token.model.backbone import load_embedder
from text2token.model.encoder import open_encoder, token_counter
from text2token.recipe import BackboneSettings
from text2token.serve.app import PAGE, create_app
from text2token.serve.batching import Batcher, Overloaded
from text2token.serve.limits import Limits
from text2token.serve.server import _settings, read_api_key, serve
from text2token.serve.service import Service, open_service

SMALL = Limits(body_bytes=20_000, texts=8, characters=500, hits=20, words=9, queue_texts=8)


@pytest.fixture(scope="module")
def table(make_backbone: BackboneMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(make_backbone("llama_tied"), tmp_path_factory.mktemp("models") / "table")


@pytest.fixture(scope="module")
def address(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server with everything."""
    index = make_index(table, tmp_path_factory.mktemp("indices") / "index")
    with running(create_app(open_service(str(table), index), SMALL)) as address:
        yield address


@pytest.fixture(scope="module")
def server(address: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=address, timeout=PATIENCE) as client:
        yield client


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


class Gate:
    """Lets an encoder through only while it is open, and remembers which texts came together."""

    def __init__(self, embed: Callable[[Sequence[str]], Tensor]) -> None:
        self.embed, self.open, self.batches = embed, threading.Event(), list[list[str]]()

    def __call__(self, texts: Sequence[str], progress: Any = None) -> Tensor:
        self.batches.append(list(texts))
        assert self.open.wait(PATIENCE)
        if "poison" in texts:
            raise ValueError("this text cannot be embedded")
        return self.embed(texts)

    def wait_for_batches(self, count: int) -> None:
        while len(self.batches) < count:
            time.sleep(0.002)


@pytest.fixture
def gate(table: Path) -> Gate:
    return Gate(open_encoder(str(table)))


@pytest.fixture
def batcher(gate: Gate) -> Iterator[Batcher]:
    batcher = Batcher(gate, Limits(texts=16, batch_texts=8, batch_tokens=1000, batch_wait=0.02, queue_texts=32))
    yield batcher
    gate.open.set()
    batcher.close()


def held_service(table: Path, gate: Gate) -> Service:
    """A service whose encoder waits at the gate."""
    service = open_service(str(table))
    service.encoder = gate  # type: ignore[assignment]
    return service


# ── embeddings ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_texts_with_a_role_are_embedded_by_themselves_and_as_that() -> None:
    asked: list[tuple[int, str | None]] = []

    def embed(texts: Sequence[str], role: str | None = None) -> Tensor:
        asked.append((len(texts), role))
        return torch.full((len(texts), 2), 0.0 if role is None else 1.0)

    batcher = Batcher(embed, Limits(batch_wait=0.2))
    plain, query = batcher.submit(["a", "b"], [1, 1]), batcher.submit(["c"], [1], "query")
    assert (plain.result(PATIENCE).sum(), query.result(PATIENCE).sum()) == (0, 2)
    batcher.close()
    assert sorted(asked, key=str) == [(1, "query"), (2, None)]


def test_the_openai_client_gets_the_vectors_of_the_model(client: openai.OpenAI, table: Path) -> None:
    texts = [TEXTS[3], TEXTS[0], TEXTS[3], "我的猫 🐈"]
    expected = open_encoder(str(table))(texts).numpy()
    answer = client.embeddings.create(model="table", input=texts)
    assert [item.index for item in answer.data] == [0, 1, 2, 3]
    assert answer.model == "table"
    np.testing.assert_allclose([item.embedding for item in answer.data], expected, atol=1e-6)
    as_numbers = client.embeddings.create(model="table", input=texts, encoding_format="float")
    np.testing.assert_array_equal([item.embedding for item in as_numbers.data], [item.embedding for item in answer.data])
    one = client.embeddings.create(model="table", input=texts[1])
    np.testing.assert_allclose(one.data[0].embedding, expected[1], atol=1e-6)
    assert one.usage.prompt_tokens == one.usage.total_tokens > 5
    assert answer.usage.prompt_tokens > 2 * one.usage.prompt_tokens
    assert [model.id for model in client.models.list()] == ["table"]


def test_fewer_dimensions_are_the_first_ones_at_unit_length(client: openai.OpenAI) -> None:
    whole, cut = (
        np.array(client.embeddings.create(model="table", input="a girl", **options).data[0].embedding)
        for options in ({}, {"dimensions": 8})
    )
    np.testing.assert_allclose(cut, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-6)


def test_tokens_are_counted_as_the_model_reads_them(make_backbone: BackboneMaker) -> None:
    model = load_embedder(BackboneSettings(str(make_backbone("llama_tied")), dtype="float32", max_length=40))
    texts = ["a girl", *TEXTS]
    counted = token_counter(model)(texts)
    assert counted == [int(model.preprocess([text])["attention_mask"].sum()) for text in texts]
    assert max(counted) == 40 > counted[0]


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "said"),
    [
        ("embeddings", {"input": []}, 400, "input", "send from 1 to 8"),
        ("embeddings", {"input": ["a"] * 9}, 400, "input", "send from 1 to 8"),
        ("embeddings", {"input": ["a", " "]}, 400, "input", "text 1 is empty"),
        ("embeddings", {"input": "a" * 501}, 400, "input", "501 characters; at most 500"),
        ("embeddings", {"input": [1, 2]}, 400, "input", "token ids"),
        ("embeddings", {"input": [[1], [2]]}, 400, "input", "token ids"),
        ("embeddings", {"input": ["a", None]}, 400, "input", "valid string"),
        ("embeddings", {"model": "table"}, 400, "input", "required"),
        ("embeddings", {"input": "a", "dimensions": 0}, 400, "dimensions", "1 to 32"),
        ("embeddings", {"input": "a", "dimensions": 33}, 400, "dimensions", "1 to 32"),
        ("embeddings", {"input": "a", "encoding_format": "hex"}, 400, "encoding_format", "'float' or 'base64'"),
        ("embeddings", {"input": "a", "model": "another"}, 404, "model", "'table'"),
        ("embeddings", {"input": "\ud800"}, 400, "input", "surrogate"),
        ("lens", {}, 400, "pair", "send from 1"),
        ("lens", {"texts": ["a"], "k": 10}, 400, "k", "at most 9"),
        ("lens", {"pair": ["a"]}, 400, "pair", ""),
        ("search", {"query": ""}, 400, "query", "empty"),
        ("search", {"query": "a", "k": 21}, 400, "k", "at most 20"),
        ("search", {"query": "a", "mode": "x"}, 400, "mode", "hybrid"),
        (
            "search",
            {"query": "a", "filters": {"year": ["1"] * 60, "x": ["1"] * 60}},
            400,
            "filters",
            "120 values; at most 100",
        ),
        ("search", {"query": "a", "filters": {"month": "1"}}, 400, None, "no document has a field 'month'; there are: year"),
        ("nothing", {}, 404, None, "Not Found"),
    ],
)
def test_what_cannot_be_answered_is_said_in_openais_shape(
    server: httpx2.Client, path: str, body: dict[str, Any], status: int, param: str | None, said: str
) -> None:
    answer = server.post(f"/v1/{path}", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert said in error["message"]


def test_null_is_the_same_as_not_given_wherever_something_may_be_left_out(server: httpx2.Client) -> None:
    given = {"/v1/embeddings": {"input": TEXTS[0]}, "/v1/lens": {"texts": TEXTS[:1]}, "/v1/search": {"query": "guitar"}}
    description = server.get("/openapi.json").json()
    optional = 0
    for path, operations in description["paths"].items():
        if "post" not in operations:
            continue
        name = operations["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        schema = description["components"]["schemas"][name]
        expected = server.post(path, json=given[path]).json()
        for parameter in set(schema["properties"]) - set(schema.get("required", ())) - set(given[path]):
            optional += 1
            answer = server.post(path, json=given[path] | {parameter: None})
            assert (answer.status_code, answer.json()) == (200, expected), (path, parameter)
    assert optional >= 9
    pair = server.post("/v1/lens", json={"texts": None, "pair": TEXTS[:2]})
    assert pair.json()["texts"] == []


def test_a_head_is_the_get_without_its_body(server: httpx2.Client) -> None:
    for path in ("/", "/healthz", "/metrics", "/v1/models", "/v1/models/table", "/page/page.js", "/nothing", "/v1/search"):
        head, get = server.head(path), server.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
    assert server.head("/healthz").status_code == server.head("/").status_code == 200


def test_a_slash_behind_an_endpoint_is_no_other_one_and_nobody_is_sent_elsewhere(server: httpx2.Client) -> None:
    body = {"input": "a girl"}
    with_slash = server.post("/v1/embeddings/", json=body, follow_redirects=False)
    assert with_slash.json() == server.post("/v1/embeddings", json=body).json()
    for path in ("/page", "/nothing/", "/v1", "/v1/", "/openapi.json/"):
        assert server.get(path, follow_redirects=False).status_code == 404, path


@pytest.mark.parametrize("kept", ["", "/embedder"], ids=["a proxy that takes the prefix off", "a proxy that leaves it"])
def test_behind_a_prefix_everything_is_found(table: Path, kept: str) -> None:
    app = create_app(open_service(str(table)), api_key="key", root_path="/embedder")
    with running(app) as address, httpx2.Client(base_url=address + kept) as client:
        html = client.get("/").text
        named = re.findall(r'(?:src|href)="([^"]+)"', html)
        assert named
        for name in named:
            assert name.startswith("/embedder/page/")
            assert client.get(name.removeprefix("/embedder")).status_code == 200
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/models").status_code == 401
        key = {"Authorization": "Bearer key"}
        assert client.post("/v1/embeddings/", json={"input": "a"}, headers=key).status_code == 200
        assert client.get("/openapi.json", headers=key).json()["servers"] == [{"url": "/embedder"}]
        assert 'path="/v1/embeddings",status="200"' in client.get("/metrics", headers=key).text


def test_a_root_path_that_is_none_is_refused(table: Path) -> None:
    for wrong in ("embedder", "/embedder/", "/", '/"><script>', "/a b"):
        with pytest.raises(UsageError, match="root_path"):
            create_app(Service("x", None, None, 1), root_path=wrong)  # type: ignore[arg-type]


def test_the_model_answers_to_its_other_names_too(table: Path) -> None:
    app = create_app(open_service(str(table)), names=["text-embedding-3-small", "our/model", "table"])
    with running(app) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        names = ["table", "text-embedding-3-small", "our/model"]
        assert [model.id for model in client.models.list()] == names
        for name in names:
            assert client.models.retrieve(name).id == name
            assert client.embeddings.create(model=name, input="a").model == name
        with pytest.raises(openai.NotFoundError, match="another"):
            client.models.retrieve("another")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_body_that_is_no_json_object_is_refused(server: httpx2.Client, content: bytes) -> None:
    answer = server.post("/v1/embeddings", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "JSON object" in answer.json()["error"]["message"]
    plain = server.post("/v1/embeddings", content=b'{"input": "a"}', headers={"Content-Type": "text/plain"})
    assert plain.status_code == 400  # else a page of another site could send it without asking
    assert "it is text/plain" in plain.json()["error"]["message"]


def test_the_client_knows_its_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.embeddings.create(model="another", input="a")
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="token ids"):
        client.embeddings.create(model="table", input=[1, 2])


def test_a_body_beyond_the_limit_is_refused_with_and_without_its_length(server: httpx2.Client) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    for content in (b" " * 20_001, pieces()):
        answer = server.post("/v1/embeddings", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"


# ── many clients ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_clients_at_once_get_their_own_vectors_out_of_common_batches(table: Path) -> None:
    texts = [f"{one} {number}" for number, one in enumerate(TEXTS * 6)]
    expected = open_encoder(str(table))(texts).numpy()
    with running(create_app(open_service(str(table)), Limits(batch_wait=0.05))) as address:

        def vectors(row: int) -> Any:
            body = {"input": texts[row : row + 2], "encoding_format": "base64"}
            data = httpx2.post(f"{address}/v1/embeddings", json=body, timeout=PATIENCE).json()["data"]
            return [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in data]

        with ThreadPoolExecutor(30) as pool:
            for row, found in zip(range(0, 60, 2), pool.map(vectors, range(0, 60, 2)), strict=True):
                np.testing.assert_allclose(found, expected[row : row + 2], atol=1e-6)
        metrics = httpx2.get(f"{address}/metrics").text
    batches = float(re.search(r"^text2token_batch_texts_count (\S+)", metrics, re.M)[1])  # type: ignore[index]
    assert 1 <= batches < 30
    assert "text2token_batch_texts_sum 60.0" in metrics
    assert 'text2token_requests_total{path="/v1/embeddings",status="200"} 30.0' in metrics
    assert "text2token_queue_texts 0.0" in metrics


def test_a_large_request_does_not_hold_up_a_small_one(batcher: Batcher, gate: Gate) -> None:
    large = [batcher.submit([f"large {half} {row}" for row in range(16)], [5] * 16) for half in "ab"]
    gate.wait_for_batches(1)
    small = batcher.submit(["small"], [5])
    gate.open.set()
    assert small.result(PATIENCE).shape == (1, 32)
    order = [text for batch in gate.batches for text in batch]
    assert order.index("small") < order.index("large b 8")
    expected = gate.embed([f"large b {row}" for row in range(16)])
    torch.testing.assert_close(large[1].result(PATIENCE), expected, atol=1e-6, rtol=0)
    assert max(map(len, gate.batches)) <= 8


def test_a_batch_ends_at_its_tokens(batcher: Batcher, gate: Gate) -> None:
    gate.open.set()
    futures = [batcher.submit(["one", "two", "three"], [600, 300, 200]), batcher.submit(["long"], [5000])]
    assert [len(future.result(PATIENCE)) for future in futures] == [3, 1]
    assert gate.batches == [["one", "two"], ["long"], ["three"]] or gate.batches == [["one", "two"], ["three"], ["long"]]


def test_a_text_that_cannot_be_embedded_fails_only_its_own_request(batcher: Batcher, gate: Gate) -> None:
    first = batcher.submit(["first"], [1])
    gate.wait_for_batches(1)
    mates = [batcher.submit(texts, [1] * len(texts)) for texts in (["good"], ["poison"], ["better", "best"])]
    gate.open.set()
    first.result(PATIENCE)
    assert mates[0].result(PATIENCE).shape == (1, 32)
    torch.testing.assert_close(mates[2].result(PATIENCE), gate.embed(["better", "best"]), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="cannot be embedded"):
        mates[1].result(PATIENCE)
    assert gate.batches[1] == ["good", "poison", "better", "best"]


def test_what_nobody_waits_for_any_more_is_not_embedded(batcher: Batcher, gate: Gate) -> None:
    first = batcher.submit(["first"], [1])
    gate.wait_for_batches(1)
    gone, stays = batcher.submit(["gone"], [1]), batcher.submit(["stays"], [1])
    assert gone.cancel()
    gate.open.set()
    assert [len(future.result(PATIENCE)) for future in (first, stays)] == [1, 1]
    assert gate.batches == [["first"], ["stays"]]
    assert batcher.waiting_texts == 0
    with pytest.raises(CancelledError):
        gone.result(0)


def test_closing_finishes_what_waits(gate: Gate) -> None:
    batcher = Batcher(gate, Limits(batch_wait=10))
    future = batcher.submit(["waiting"], [1])
    gate.open.set()
    batcher.close()  # at once: nobody else can come
    assert future.result(0).shape == (1, 32)


def test_a_full_queue_says_so_at_once_and_recovers(table: Path, gate: Gate) -> None:
    limits = Limits(texts=4, queue_texts=4, batch_texts=1, batch_wait=0)
    with (
        running(create_app(held_service(table, gate), limits)) as address,
        httpx2.Client(base_url=address, timeout=PATIENCE) as client,
        ThreadPoolExecutor(2) as pool,
    ):

        def ask(*texts: str) -> httpx2.Response:
            return client.post("/v1/embeddings", json={"input": texts})

        working = pool.submit(ask, "taken")
        gate.wait_for_batches(1)
        waiting = pool.submit(ask, "a", "b", "c", "d")
        while "text2token_queue_texts 4.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        refused = ask("one too many")  # while the gate is still shut
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert client.get("/healthz").json() == {"status": "ok"}
        gate.open.set()
        assert working.result(PATIENCE).status_code == waiting.result(PATIENCE).status_code == 200
        assert ask("later").status_code == 200


def test_more_requests_than_can_be_worked_on_are_turned_away(table: Path, gate: Gate) -> None:
    with (
        running(create_app(held_service(table, gate), Limits(requests=1))) as address,
        httpx2.Client(base_url=address, timeout=PATIENCE) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        working = pool.submit(client.post, "/v1/embeddings", json={"input": "a"})
        gate.wait_for_batches(1)
        refused = client.post("/v1/embeddings", json={"input": "b"})
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert client.get("/healthz").status_code == client.get("/metrics").status_code == 200
        gate.open.set()
        assert working.result(PATIENCE).status_code == 200
        assert client.post("/v1/embeddings", json={"input": "b"}).status_code == 200


def test_a_request_that_takes_too_long_is_ended_and_the_next_one_answered(table: Path, gate: Gate) -> None:
    with (
        running(create_app(held_service(table, gate), Limits(seconds=0.3))) as address,
        httpx2.Client(base_url=address, timeout=PATIENCE) as client,
    ):
        late = client.post("/v1/embeddings", json={"input": "a"})
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "timeout"
        gate.open.set()
        while (next_one := client.post("/v1/embeddings", json={"input": "b"}).status_code) == 503:
            pass  # a busy machine may need more than 0.3 s for it
        assert next_one == 200


def test_a_mistake_of_ours_is_a_500_without_details(table: Path, gate: Gate) -> None:
    gate.open.set()
    with running(create_app(held_service(table, gate))) as address:
        answer = httpx2.post(f"{address}/v1/embeddings", json={"input": "poison"})
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert "ValueError" not in answer.text
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


# ── lens and search ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_lens_says_what_the_reader_says(server: httpx2.Client, table: Path) -> None:
    answer = server.post("/v1/lens", json={"texts": TEXTS[:2], "pair": TEXTS[:2], "k": 5}).json()
    encoder = open_encoder(str(table))
    reader, vectors = open_reader(table), encoder(TEXTS[:2])
    for said, words in zip(answer["texts"], reader.words(vectors, 5), strict=True):
        assert [word["word"] for word in said["words"]] == [word.word for word in words]
        assert any(word["in_text"] for word in said["words"])
    pair = answer["pair"]
    assert [word["word"] for word in pair["words"]] == [word for word, _ in reader.contributions(*vectors, 5)]
    assert pair["common"] + pair["explained"] + pair["rest"] == pytest.approx(pair["cosine"])
    only_pair = server.post("/v1/lens", json={"pair": TEXTS[:2], "k": 5}).json()
    assert only_pair["texts"] == []
    assert only_pair["pair"]["cosine"] == pytest.approx(pair["cosine"])


def test_hits_explain_themselves(server: httpx2.Client) -> None:
    hits = server.post("/v1/search", json={"query": "a girl plays the guitar", "k": 5}).json()["hits"]
    assert len(hits) == 5
    for hit in hits:
        shared = [reason["contribution"] for reason in hit["reasons"] if reason["half"] == "sparse"]
        assert sum(shared) == pytest.approx(hit["sparse"])
    said = [reason for hit in hits for reason in hit["reasons"] if reason["half"] == "dense"]
    assert said
    found = next(hit for hit in hits if hit["text"] == RIGHT_TO_LEFT)  # emoji before the words: characters are counted
    assert {found["text"][start:end] for start, end in found["highlights"]} == {"girl", "plays", "guitar"}


def test_search_ranks_by_meaning_or_by_words_and_filters(server: httpx2.Client) -> None:
    by_words = server.post("/v1/search", json={"query": "guitar", "mode": "sparse"}).json()["hits"]
    assert len(by_words) == 3
    assert all("guitar" in hit["text"] for hit in by_words)
    by_meaning = server.post("/v1/search", json={"query": TEXTS[4], "mode": "dense", "k": 1}).json()["hits"]
    assert by_meaning[0]["text"] == TEXTS[4]
    assert by_meaning[0]["dense"] == pytest.approx(1, abs=1e-4)
    one_year = server.post("/v1/search", json={"query": "guitar", "k": 5, "filters": {"year": "2001"}}).json()["hits"]
    assert {hit["fields"]["year"] for hit in one_year} == {2001}


def test_searches_at_once_find_what_they_would_find_alone(server: httpx2.Client) -> None:
    def found(query: str) -> list[str]:
        return [hit["id"] for hit in server.post("/v1/search", json={"query": query, "k": 3}).json()["hits"]]

    alone = [found(text) for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(found, TEXTS * 4)) == alone * 4


def test_without_reader_and_index_the_rest_works(table: Path, tmp_path: Path) -> None:
    service = open_service(str(table))
    service.reader = None
    with running(create_app(service)) as address, httpx2.Client(base_url=address) as client:
        card = client.get("/v1/models").json()["data"][0]
        assert (card["lens"], card["index"], card["dimensions"]) == (None, None, 32)
        for path, body, code in (("lens", {"texts": ["a"]}, "no_lens"), ("search", {"query": "a"}, "no_index")):
            answer = client.post(f"/v1/{path}", json=body)
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == code
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200
    with pytest.raises(OutputError, match="holds no index"):
        open_service(str(table), tmp_path)


def test_an_index_of_another_model_is_refused_and_left_open_for_others(
    make_backbone: BackboneMaker, table: Path, tmp_path: Path
) -> None:
    index = make_index(table, tmp_path / "index")
    other = make_model(make_backbone("llama"), tmp_path / "other")
    with pytest.raises(OutputError, match="another model"):
        open_service(str(other), index)
    service = open_service(str(table), index)
    service.close()
    service.close()  # twice is no harm


# ── the door ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_with_a_key_only_the_page_and_the_health_are_open(table: Path) -> None:
    with running(create_app(open_service(str(table)), api_key="open sesame")) as address:
        for path in ("/", "/page/page.js", "/healthz"):
            assert httpx2.get(address + path).status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            for key in (None, "Bearer wrong", "open sesame", "Bearer"):
                answer = httpx2.get(address + path, headers={"Authorization": key} if key else {})
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert httpx2.get(address + path, headers={"Authorization": "Bearer open sesame"}).status_code != 401
        wrong = openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0)
        with wrong as client, pytest.raises(openai.AuthenticationError):
            client.embeddings.create(model="table", input="a")


def test_only_the_names_of_this_machine_are_answered(table: Path) -> None:
    with running(create_app(open_service(str(table)), hosts=("127.0.0.1", "localhost", "::1"))) as address:
        port = address.rpartition(":")[2]
        for host, status in {"localhost": 200, f"[::1]:{port}": 200, "rebound.example": 421, "[": 421, "": 421}.items():
            assert httpx2.get(f"{address}/healthz", headers={"Host": host}).status_code == status, host


def test_browsers_are_told_to_be_strict(server: httpx2.Client) -> None:
    for path in ("/", "/page/page.css", "/v1/models", "/nothing"):
        answer = server.get(path, headers={"Origin": "https://example.org"})
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["Cache-Control"] == ("no-store" if path.startswith("/v1/") else "no-cache")


def test_the_page_stands_on_its_own_files_alone(server: httpx2.Client) -> None:
    html = server.get("/").text
    named = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert {Path(name).name for name in named} | {"index.html"} == {file.name for file in PAGE.iterdir()}
    for name in named:
        assert server.get(name).status_code == 200
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*src=)", html)
    sources = "".join((PAGE / Path(name).name).read_text(encoding="utf-8") for name in named if not name.endswith("svg"))
    assert "://" not in html + sources
    assert "innerHTML" not in sources
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/"):
        assert server.get(path).status_code == 404


def test_a_limit_that_cannot_be_is_refused() -> None:
    for wrong, said in (
        ({"texts": 0}, "texts is 0"),
        ({"queue_texts": 10}, "less than the 1024"),
        ({"seconds": -1.0}, "-1"),
        ({"seconds": float("nan")}, "nan"),
        ({"batch_wait": float("inf")}, "inf"),
    ):
        with pytest.raises(UsageError, match=said):
            Limits(**wrong)
    with pytest.raises(Overloaded, match="5 texts are waiting"):
        raise Overloaded(5, 1)


def test_a_connection_that_sends_no_whole_headers_is_closed_in_the_time_of_a_request(table: Path) -> None:
    settings = _settings(create_app(open_service(str(table))), Limits(seconds=0.3, connections=3))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    address = listening.getsockname()
    with contextlib.ExitStack() as stack:
        stack.callback(listening.close)
        stack.callback(thread.join, PATIENCE)
        stack.callback(setattr, server, "should_exit", True)
        silent, begun = (stack.enter_context(socket.create_connection(address, timeout=PATIENCE)) for _ in range(2))
        begun.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
        assert silent.recv(1) == begun.recv(1) == b""  # closed
        with httpx2.Client(base_url=f"http://127.0.0.1:{address[1]}", transport=httpx2.HTTPTransport(retries=100)) as client:
            for _ in range(3):  # one that asks is answered, and others have room again
                assert client.get("/healthz", timeout=PATIENCE).status_code == 200


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_key_is_read_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n", encoding="utf-8")
    assert read_api_key(None) is None
    monkeypatch.setenv("TEXT2TOKEN_API_KEY", "from-environment")
    assert read_api_key(None) == "from-environment"
    for content in ("from-file\n", "\ufefffrom-file\r\n", " from-file"):
        file.write_text(content, encoding="utf-8")
        assert read_api_key(file) == "from-file"
        monkeypatch.setenv("TEXT2TOKEN_API_KEY", content.lstrip("\ufeff"))
        assert read_api_key(None) == "from-file"
    for content in ("", " \n", "two words", "ключ", "two\nlines", "a\x07b"):
        file.write_text(content, encoding="utf-8")
        monkeypatch.setenv("TEXT2TOKEN_API_KEY", content)
        for place in (file, None):
            with pytest.raises(UsageError, match="holds no key"):
                read_api_key(place)
    with pytest.raises(UsageError, match="no key can be read"):
        read_api_key(tmp_path / "nowhere")


def test_a_stopped_server_finishes_what_it_has_begun(table: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "serve", str(table), "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr
        said = ""
        while "Ctrl-C stops" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        assert "32 dimensions" in said
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)", said)[1])  # type: ignore[index]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port} cannot be listened on"):
            serve(str(table), port=port)
        body = json.dumps({"input": TEXTS}).encode()
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(
                b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body) + body[:10]
            )
            assert (
                httpx2.get(f"http://127.0.0.1:{port}/healthz", timeout=PATIENCE).status_code == 200
            )  # by now it has those bytes
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert process.poll() is None
            connection.sendall(body[10:])
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 200")
        assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["data"]) == len(TEXTS)
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == "Stopped.\n"
    finally:
        process.kill()
        process.communicate()


def test_what_cannot_be_served_is_told(table: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no index"):
        serve(str(table), tmp_path, port=0)
    with pytest.raises(ModelError, match="cannot be loaded"):
        serve(str(tmp_path), port=0)
    with pytest.raises(UsageError, match="cannot be listened on"):
        serve(str(table), host="nowhere.invalid")


def test_hostile_documents_come_back_as_they_are(server: httpx2.Client) -> None:
    hits = server.post("/v1/search", json={"query": "listens to the socket", "mode": "sparse", "k": 1}).json()["hits"]
    assert hits[0]["text"] == HOSTILE
    assert hits[0]["text"] in {document.text for document in DOCUMENTS}
