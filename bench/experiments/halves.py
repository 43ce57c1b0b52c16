"""What is each half of a search worth, and how are they best fused? nDCG@10 on the retrieval tasks of a suite.

    python bench/experiments/halves.py MODEL SUITE [--suite-tokens N] [--sparse]

dense is the cosine of MODEL, BM25 the sparse half of `text2token index`; fused by reciprocal ranks, by the sum of z-scores,
or as the engine's distribution-based fusion does it. With --sparse also `text2token export --sparse`, its decoder learnt
from the task's own documents, unlabelled.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from qdrant_edge import SparseVector
from scipy.sparse import csr_array, diags_array

from text2token.evaluation.suite import SuiteTask, read_suite, sample_suite
from text2token.export.sparse import ACTIVE_TOKENS, fit_words
from text2token.model.backbone import tokenizer_of
from text2token.model.encoder import open_embedder, open_encoder
from text2token.search.words import Words, average_length
from text2token.targets.data_driven import DataDrivenTargets
from text2token.tokens.vocabulary import TargetVocabulary

Scores = NDArray[np.float64]  # (queries, documents)


def bm25(queries: list[str], documents: list[str]) -> Scores:
    """Return what the engine would, rarity as it counts it."""
    words = Words("english", average_length(documents, "english"))
    columns: dict[int, int] = {}

    def matrix(vectors: list[SparseVector]) -> csr_array:
        indices = [columns.setdefault(number, len(columns)) for vector in vectors for number in vector.indices]
        values = [value for vector in vectors for value in vector.values]
        bounds = np.cumsum([0, *(len(vector.indices) for vector in vectors)])
        return csr_array((values, indices, bounds), shape=(len(vectors), len(columns)))

    asked = [words.of_query(text) for text in queries]
    matrix(asked)  # so that both have all columns
    there, asking = matrix([words.of_document(text) for text in documents]), matrix(asked)
    frequency = (there > 0).sum(axis=0)
    rarity = np.log((len(documents) - frequency + 0.5) / (frequency + 0.5) + 1)
    return (asking @ diags_array(rarity) @ there.T).toarray()


def said(name: str, texts: list[str], queries: torch.Tensor, documents: torch.Tensor) -> Scores:
    """Return the cosines of the sparse export."""
    tokenizer = tokenizer_of(open_embedder(name))
    targets = DataDrivenTargets(tokenizer, TargetVocabulary.from_tokenizer(tokenizer).with_one_form()).fit(texts)
    weight = fit_words(documents, targets.rows(texts))

    def strongest(vectors: torch.Tensor) -> torch.Tensor:
        best = torch.topk((vectors @ weight).relu(), ACTIVE_TOKENS)
        sparse = torch.zeros(len(vectors), weight.shape[1]).scatter_(1, best.indices, best.values)
        return torch.nn.functional.normalize(sparse)

    return (strongest(queries) @ strongest(documents).T).double().numpy()


def by_ranks(first: Scores, second: Scores, k: int) -> Scores:
    """Return the sum of reciprocal ranks; where the second is 0 it has no rank."""
    ranks = [np.argsort(np.argsort(-scores, axis=1), axis=1) for scores in (first, second)]
    return 1 / (k + 1 + ranks[0]) + np.where(second > 0, 1 / (k + 1 + ranks[1]), 0)


def z_scores(scores: Scores) -> Scores:
    """Return the scores of each query, less their mean, by their spread."""
    return (scores - scores.mean(axis=1, keepdims=True)) / (scores.std(axis=1, keepdims=True) + 1e-9)


def by_distribution(first: Scores, second: Scores, candidates: int = 100) -> Scores:
    """Return what the engine's Fusion.Dbsf does: where a score lies between mean ± 3 spreads of the best of its half."""
    total = np.zeros_like(first)
    for scores in (first, second):
        for row, own in enumerate(scores):
            best = np.argsort(-own, kind="stable")[:candidates]
            best = best[own[best] != 0]
            if len(best) > 1:
                low = own[best].mean() - 3 * own[best].std(ddof=1)
                total[row, best] += (own[best] - low) / max(1e-9, 6 * own[best].std(ddof=1))
    return total


def ndcg_at_10(scores: Scores, task: SuiteTask) -> float:
    """Return nDCG@10 in percent."""
    names = [row["_id"] for row in task.tables["corpus"]]
    right: dict[str, dict[str, int]] = defaultdict(dict)
    for row in task.tables["qrels"]:
        right[row["query-id"]][row["corpus-id"]] = max(row["score"], 0)
    discount = 1 / np.log2(np.arange(2, 12))
    results = []
    for query, row in zip(task.tables["queries"], scores, strict=True):
        gains = right[query["_id"]]
        got = np.array([gains.get(names[index], 0) for index in np.argsort(-row, kind="stable")[:10]])
        best = np.array(sorted(gains.values(), reverse=True)[:10])
        results.append((got * discount[: len(got)]).sum() / max(1e-9, (best * discount[: len(best)]).sum()))
    return 100 * float(np.mean(results))


def main() -> None:
    """Print a row for every way of searching."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("suite", type=Path)
    parser.add_argument("--suite-tokens", type=int, help="of the retrieval tasks together; default: all")
    parser.add_argument("--sparse", action="store_true")
    arguments = parser.parse_args()
    tasks = [task for task in read_suite(arguments.suite) if task.type == "retrieval"]
    if arguments.suite_tokens:
        tasks = sample_suite(tasks, arguments.suite_tokens)
    encoder = open_encoder(arguments.model, "auto")
    figures: dict[str, list[str]] = defaultdict(list)
    for task in tasks:
        queries = [row["text"] for row in task.tables["queries"]]
        documents = [f"{row['title']} {row['text']}".strip() for row in task.tables["corpus"]]
        asked, there = encoder(queries), encoder(documents)
        dense: Scores = (asked @ there.T).double().numpy()
        halves = {"BM25": bm25(queries, documents)}
        if arguments.sparse:
            halves["sparse export"] = said(arguments.model, documents, asked, there)
        ways = {"dense": dense, **halves}
        for name, half in halves.items():
            ways |= {f"dense + {name}, ranks, k = {k}": by_ranks(dense, half, k) for k in (2, 10, 60)}
            ways[f"dense + {name}, z-scores"] = z_scores(dense) + z_scores(half)
            ways[f"dense + {name}, by distribution of the best 100"] = by_distribution(dense, half)
        for name, scores in ways.items():
            figures[name].append(f"{ndcg_at_10(scores, task):.1f}")
    described = [f"{t.name} ({len(t.tables['queries'])} / {len(t.tables['corpus'])})" for t in tasks]
    print("| " + " | ".join(["queries / documents", *described]) + " |")
    print("|---" * (len(tasks) + 1) + "|")
    for name, row in figures.items():
        print("| " + " | ".join([name, *row]) + " |")


if __name__ == "__main__":
    main()
