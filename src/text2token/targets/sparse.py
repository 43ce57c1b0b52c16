"""Targets as a sparse matrix with a row of token weights for each text: how all are cut, interpolated and normalised."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array, diags_array

from text2token.targets.store import SCHEMA


def largest(rows: csr_array, k: int) -> csr_array:
    """Return `rows` with at most the `k` largest weights of each; of equal ones the lower token id stays."""
    counts = np.diff(rows.indptr)
    longer = np.repeat(counts > k, counts)  # sorting is for the few rows that are too long
    of_row = np.repeat(np.arange(len(counts)), counts)[longer]
    largest_first = np.lexsort((rows.indices[longer], -rows.data[longer], of_row))
    place = np.arange(len(rows.data)) - np.repeat(rows.indptr[:-1], counts)
    kept = ~longer
    kept[np.flatnonzero(longer)[largest_first[place[longer] < k]]] = True
    bounds = np.concatenate([[0], np.cumsum(np.minimum(counts, k))])
    return csr_array((rows.data[kept], rows.indices[kept], bounds), shape=rows.shape)


def distributions(rows: csr_array) -> csr_array:
    """Return `rows`, of weights not below zero, each scaled to sum to 1; rows without any weight stay empty."""
    sums = rows.sum(axis=1)
    return csr_array(diags_array(np.divide(1, sums, out=np.zeros_like(sums), where=sums > 0)) @ rows)


def interpolated(first: csr_array, second: csr_array, share: float) -> csr_array:
    """Return (1 - share) `first` + share `second`, both distributions; where one has no tokens, the other alone."""
    return distributions(csr_array((1 - share) * first + share * second))


def record_batch(texts: Sequence[str] | pa.Array, rows: csr_array) -> pa.RecordBatch:
    """Return texts and their targets in the store's schema, ids ascending; a text without any token is left out."""
    rows = distributions(rows)
    rows.eliminate_zeros()
    rows.sort_indices()
    counts = np.diff(rows.indptr)
    bounds = np.concatenate([[0], np.cumsum(counts[counts > 0])]).astype(np.int32)
    texts = texts if isinstance(texts, pa.Array) else pa.array(texts, pa.large_string())
    columns = [
        texts.filter(pa.array(counts > 0)),
        pa.ListArray.from_arrays(bounds, rows.indices.astype(np.int32)),
        pa.ListArray.from_arrays(bounds, rows.data.astype(np.float32)),
    ]
    return pa.record_batch(columns, schema=SCHEMA)
