"""What the server answers, for its description at /openapi.json: the answers themselves are written without these.

A fuzzed test compares what comes with what is said here.
"""

from typing import Any, Literal

from pydantic import BaseModel


class Problem(BaseModel):
    """What is wrong, in words; `param` is the part of the request that it is about."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class Refusal(BaseModel):
    """Every answer that is not a success."""

    error: Problem


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"]


class Lens(BaseModel):
    """How the embeddings are read, and the number of words that can be said."""

    reads: str
    words: int


class SearchedIndex(BaseModel):
    """The number of documents and the names of the fields to filter by."""

    documents: int
    fields: list[str]


class Model(BaseModel):
    """The embedder of this server; `created` is when the server started, in seconds since 1970."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    dimensions: int
    lens: Lens | None
    index: SearchedIndex | None
    limits: dict[str, float]


class Models(BaseModel):
    """All models, of which there is one."""

    object: Literal["list"]
    data: list[Model]


class Usage(BaseModel):
    """Tokens that the model has read."""

    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    """A vector of unit length: numbers, or the bytes of little-endian float32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(BaseModel):
    """A vector for each text, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class SaidWord(BaseModel):
    """A word that an embedding says, how strongly, and whether it is in the text."""

    word: str
    weight: float
    in_text: bool


class ReadText(BaseModel):
    """What the embedding of a text says, strongest first."""

    words: list[SaidWord]


class SharedWord(BaseModel):
    """A word that makes two texts similar, and its share of their cosine."""

    word: str
    share: float


class ReadPair(BaseModel):
    """What the cosine of two texts is made of: `explained` by `words`, `common` to all texts, and a `rest`."""

    cosine: float
    common: float
    explained: float
    rest: float
    words: list[SharedWord]


class Read(BaseModel):
    """What embeddings say; `pair` is there where two texts were to be compared."""

    model: str
    reads: str
    texts: list[ReadText]
    pair: ReadPair | None = None
    usage: Usage


class Reason(BaseModel):
    """A word that a hit was found for, what it contributes, and to which half of the score."""

    word: str
    contribution: float
    half: Literal["dense", "sparse"]


class Found(BaseModel):
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


class Search(BaseModel):
    """The best documents, best first."""

    model: str
    mode: Literal["hybrid", "dense", "sparse"]
    hits: list[Found]
    usage: Usage
