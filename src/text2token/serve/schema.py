"""The server's requests and answers; its description at /openapi.json is made of these."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from starlette.exceptions import HTTPException
from starlette.responses import Response

from text2token.model.backbone import Role
from text2token.search import Mode

JSON = "application/json"


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


Values = Annotated[list[str], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)]


class SearchRequest(BaseModel):
    """`filters`: field → the values, one of which a hit must have."""

    query: str
    k: int | None = Field(None, ge=1)
    mode: Mode | None = "hybrid"
    filters: dict[str, Values] | None = {}
    model: str | None = None


class Answer(BaseModel):
    """An answer, or a part of one, which may be made of an object that has the same names."""

    model_config = ConfigDict(from_attributes=True)

    def response(self, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        """Return it as JSON, without what was not set."""
        return Response(self.model_dump_json(exclude_unset=True), status, headers, JSON)


class Problem(Answer):
    """What is wrong, in words; `param` is the part of the request that it is about."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class Refusal(Answer):
    """Every answer that is not a success."""

    error: Problem


class Health(Answer):
    """The server answers."""

    status: Literal["ok"]


class Lens(Answer):
    """How the embeddings are read, and the number of words that can be decoded."""

    reads: str
    words: int


class SearchedIndex(Answer):
    """The number of documents and the names of the fields to filter by."""

    documents: int
    fields: list[str]


class Model(Answer):
    """The embedder of this server; `created` is when the server started, in seconds since 1970."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    dimensions: int
    lens: Lens | None
    index: SearchedIndex | None
    limits: dict[str, float]


class Models(Answer):
    """All models, of which there is one."""

    object: Literal["list"]
    data: list[Model]


class Usage(Answer):
    """Tokens that the model has read."""

    prompt_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, tokens: int) -> "Usage":
        """Return that of so many tokens, which are all of the texts'."""
        return cls(prompt_tokens=tokens, total_tokens=tokens)


class Embedding(Answer):
    """A vector of unit length: numbers, or the bytes of little-endian float32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(Answer):
    """A vector for each text, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class DecodedToken(Answer):
    """A decoded token of an embedding: the word, its weight, and whether the text holds it."""

    word: str
    weight: float
    in_text: bool


class ReadText(Answer):
    """The decoded tokens of a text, strongest first."""

    words: list[DecodedToken]


class SharedWord(Answer):
    """A word that makes two texts similar, and its share of their cosine."""

    word: str
    share: float


class ReadPair(Answer):
    """What the cosine of two texts is made of: `explained` by `words`, `common` to all texts, and a `rest`."""

    cosine: float
    common: float
    explained: float
    rest: float
    words: list[SharedWord]


class Read(Answer):
    """The decoded tokens of texts; `pair` only where two texts were compared."""

    model: str
    reads: str
    texts: list[ReadText]
    pair: ReadPair | None = None
    usage: Usage


class Reason(Answer):
    """A word that a hit was found for, what it contributes, and to which half of the score."""

    word: str
    contribution: float
    half: Literal["dense", "sparse"]


class Found(Answer):
    """A document that was found; `highlights` are where words of the query stand in `text`, as (start, end)."""

    id: str
    score: float
    dense: float
    sparse: float
    text: str
    place: str
    fields: dict[str, Any]
    reasons: list[Reason]
    highlights: list[tuple[int, int]]


class Search(Answer):
    """The best documents, best first."""

    model: str
    mode: Mode
    hits: list[Found]
    usage: Usage


class Refused(HTTPException):
    """A request cannot be answered: the HTTP status, what was found and what to do, and which parameter it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    def response(self) -> Response:
        """Return the answer: {"error": {"message", "type", "param", "code"}}."""
        kind: Literal["rate_limit_error", "invalid_request_error", "server_error"] = "server_error"
        if self.status_code < 500:
            kind = "rate_limit_error" if self.status_code == 429 else "invalid_request_error"
        problem = Problem(message=self.detail, type=kind, param=self.param, code=self.code)
        return Refusal(error=problem).response(self.status_code, self.headers)
