"""One query: the best documents of the dense half, the sparse half or both, each with its reasons."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np
import qdrant_edge as engine
from numpy.typing import NDArray

from text2token.corpus.normalisation import normalise
from text2token.errors import UsageError
from text2token.search import Mode
from text2token.search.explain import DenseExplanation, Reason, dense_reasons, shared_words
from text2token.search.records import fields_of
from text2token.search.store import DENSE, SPARSE, Store
from text2token.search.words import Words

MODES: tuple[Mode, ...] = get_args(Mode)
CANDIDATES = 100  # of each half, before they are fused


@dataclass(frozen=True)
class Hit:
    """A found document, with all that a page needs to show it.

    `score` ranks: the cosine, the BM25 score, or the sum of both on one scale, by the mode. `dense` (the cosine) and
    `sparse` (BM25; 0 where no word is shared) are given in every mode. `reasons` are the strongest first within a half; of
    those of "sparse" the sum is `sparse`. `highlights` are where words of the query stand in `text`, as (start, end).
    """

    id: str
    score: float
    dense: float
    sparse: float
    text: str
    place: str
    fields: Mapping[str, Any]
    reasons: Sequence[Reason]
    highlights: Sequence[tuple[int, int]]


def checked_query(query: str, k: int, mode: str) -> str:
    """Return the normalised query; `UsageError` where it is empty, or for a mode that there is not."""
    if mode not in MODES:
        raise UsageError(f"mode is {mode!r}; choose {', '.join(MODES)}")
    query = normalise(query)
    if not query:
        raise UsageError("the query is empty; give some words")
    if k < 1:
        raise UsageError(f"k is {k}; at least one hit must be wanted")
    return query


def find(
    store: Store,
    words: Words,
    query: str,
    vector: NDArray[np.float32],
    explain: DenseExplanation | None,
    k: int,
    mode: Mode,
    condition: "engine.Filter | None",
) -> list[Hit]:
    """Return the `k` best documents that meet `condition`, best first; `vector`, shape (dimension,), is the query's."""
    k = min(k, max(1, store.count))
    spelt = words.of_query(query)
    halves = {DENSE: engine.Query.Nearest(vector.tolist(), using=DENSE)}
    if spelt:
        halves[SPARSE] = engine.Query.Nearest(engine.SparseVector(list(spelt), [1.0] * len(spelt)), using=SPARSE)
    if mode == "sparse" and SPARSE not in halves:
        return []
    if mode == "hybrid":
        fused = [engine.Prefetch(limit=max(CANDIDATES, k), query=half, filter=condition) for half in halves.values()]
        summed: Any = engine.Fusion.Dbsf()  # which the engine's stubs do not count among its queries
        request = engine.QueryRequest(limit=k, prefetches=fused, query=summed, with_payload=True, with_vector=True)
    else:
        ranked = halves[DENSE if mode == "dense" else SPARSE]
        request = engine.QueryRequest(limit=k, query=ranked, filter=condition, with_payload=True, with_vector=True)
    found = store.shard.query(request)
    stored: list[Any] = [point.vector for point in found]
    weights = [dict(zip(vectors[SPARSE].indices, vectors[SPARSE].values, strict=True)) for vectors in stored]
    rarity = _rarity(store, sorted(spelt.keys() & set().union(*weights)))
    dense = np.array([vectors[DENSE] for vectors in stored], dtype=np.float32).reshape(len(stored), len(vector))
    reasons = dense_reasons(explain, vector, dense)
    cosines = dense @ vector / max(1e-12, float(np.linalg.norm(vector)))
    return [
        _hit(words, point, cosine, shared_words(spelt, weight, rarity), spelt.keys() & weight.keys(), by_meaning)
        for point, cosine, weight, by_meaning in zip(found, cosines.tolist(), weights, reasons, strict=True)
    ]


def _hit(
    words: Words,
    point: "engine.ScoredPoint",
    cosine: float,
    shared: Sequence[Reason],
    numbers: Set[int],
    by_meaning: Sequence[Reason],
) -> Hit:
    payload: Any = point.payload
    return Hit(
        id=str(point.id),
        score=point.score,
        dense=cosine,
        sparse=sum(reason.contribution for reason in shared),
        text=payload["text"],
        place=payload["place"],
        fields=fields_of(payload),
        reasons=[*shared, *by_meaning],
        highlights=words.places(payload["text"], numbers),
    )


def _rarity(store: Store, numbers: Sequence[int]) -> dict[int, float]:
    """Return the inverse document frequency of each word, as the engine has it at the moment.

    The engine does not tell, but the score of a query of one word is rarity · weight in the document.
    """
    if not numbers:
        return {}
    words = (engine.Query.Nearest(engine.SparseVector([number], [1.0]), using=SPARSE) for number in numbers)
    alone = [engine.QueryRequest(limit=1, query=word, with_vector=[SPARSE]) for word in words]
    rarity = {}
    for number, best in zip(numbers, store.shard.query_batch(engine.QueryBatchRequest(alone)), strict=True):
        vector = cast(Any, best[0].vector)[SPARSE]
        rarity[number] = best[0].score / dict(zip(vector.indices, vector.values, strict=True))[number]
    return rarity
