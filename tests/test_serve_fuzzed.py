"""Whatever is sent, within the server's own description of itself or outside of it, is answered as that description says."""

from collections import Counter
from collections.abc import Iterator

import httpx2
import pytest
import schemathesis
from conftest import PATIENCE, BackboneMaker
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import positive_data_acceptance
from serving import make_index, make_model, running

from text2token.serve.app import create_app
from text2token.serve.limits import Limits
from text2token.serve.service import open_service

READ = ["/healthz", "/metrics", "/v1/models"]
BY_NAME = "/v1/models/{model}"
ASKED = ["/v1/embeddings", "/v1/lens", "/v1/search"]
FEW = settings(  # always the same, so that what is found depends on nothing else
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def address(make_backbone: BackboneMaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = make_model(make_backbone("llama_tied"), tmp_path_factory.mktemp("models") / "table")
    index = make_index(model, tmp_path_factory.mktemp("indices") / "index")
    limits = Limits(body_bytes=50_000, texts=8, characters=2000, hits=20, words=9, queue_texts=64)
    with running(create_app(open_service(str(model), index), limits)) as address:
        yield address


@pytest.fixture(scope="module")
def api(address: str) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{address}/openapi.json")


@pytest.mark.parametrize("path", [*READ, *ASKED])
def test_what_is_asked_for_as_described_is_answered_as_described(api: schemathesis.BaseSchema, path: str) -> None:
    found: Counter[int] = Counter()

    @given(next(iter(api[path].values())).as_strategy(generation_mode=GenerationMode.POSITIVE))
    @FEW
    def ask(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):  # any name of a model or field is as described, and none but these is here
            case.body.pop("model", None)
            if case.body.get("filters"):
                case.body["filters"] = {"year": list(case.body["filters"])}
        response = case.call_and_validate(timeout=PATIENCE, excluded_checks=[positive_data_acceptance])
        found[response.status_code] += 1

    ask()
    assert found[200]
    assert not any(status >= 429 for status in found)


@pytest.mark.parametrize("path", ASKED)
def test_what_is_asked_for_otherwise_is_refused_as_described(api: schemathesis.BaseSchema, path: str) -> None:
    @given(api[path]["POST"].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    @FEW
    def ask(case: schemathesis.Case) -> None:
        response = case.call_and_validate(timeout=PATIENCE)
        assert 400 <= response.status_code < 500

    ask()


@given(
    st.sampled_from([*READ, *ASKED, "/", "/page/", "/page/../app.py", "/none"]),
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "NONE"]),
    st.sampled_from(["application/json", "text/plain", "multipart/form-data; boundary=x", "", "a/b; charset=none"]),
    st.binary(max_size=300) | st.sampled_from([b"[" * 20_000, b'{"a":' * 8_000, b"9" * 20_000, b'"\\ud800"', b"NaN", b"{}"]),
)
@FEW
def test_any_bytes_by_any_method_are_no_mistake_of_ours(
    address: str, path: str, method: str, kind: str, body: bytes
) -> None:
    response = httpx2.request(method, address + path, content=body, headers={"Content-Type": kind}, timeout=PATIENCE)
    assert response.status_code < 500
    if response.status_code >= 400:
        assert response.json()["error"]["message"]


def test_all_paths_are_asked(api: schemathesis.BaseSchema) -> None:
    assert set(api) == {*READ, BY_NAME, *ASKED}
