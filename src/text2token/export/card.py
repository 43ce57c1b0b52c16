"""The README of an exported embedder: how it was made, from what, and how to use it."""

import importlib.metadata
import json
import platform
import textwrap
import tomllib
from pathlib import Path
from typing import Any

from text2token.corpus.published import HUB_ID, published_model, published_recipe, published_settings

LIBRARIES = ("text2token", "sentence-transformers", "transformers", "torch", "peft")


FRONT = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, sentence-similarity, feature-extraction, text2token]
---
"""
PLACE = "path/to/this/folder"  # until it is published, and then its address
USAGE = f"""```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{PLACE}")
embeddings = model.encode(["a text", "another text"])   # unit length; compare by dot product
```
"""


def static_card(backbone: str, documents: int) -> str:
    """Return the card of a static embedder made from `backbone` and so many documents."""
    return f"""{_front(backbone)}
# A static text embedder made without labels

{USAGE}
One vector per token, from the language-model head of {published_model(backbone)},
weighted by inverse document frequency in {documents:,} documents and whitened; the vector of a text is their mean. It
knows words, not their order. The first dimensions carry most, so vectors can be cut (`truncate_dim`) and are then to be
scaled to unit length again (`encode(…, normalize_embeddings=True)`).

- Versions: {_versions()}.
"""


def sparse_card(model: str, active: int) -> str:
    """Return the card of a sparse encoder made from the embedder `model`."""
    return f"""---
library_name: sentence-transformers
pipeline_tag: feature-extraction
tags: [sentence-transformers, sparse-encoder, sparse, text2token]
---

# Decoded tokens of an embedder

```python
from sentence_transformers import SparseEncoder

model = SparseEncoder("{PLACE}")
vectors = model.encode(["a text", "another text"])   # sparse; compare by cosine
print(model.decode(vectors[0], top_k=10))            # (token, weight), strongest first
```

{Path(model).name} with one matrix behind it, learnt without labels, that decodes an embedding to tokens; the {active}
strongest are kept.

- Versions: {_versions()}.
"""


def model_card(recipe: str, result: dict[str, Any]) -> str:
    """Return the card as Markdown with the hub's metadata block; `recipe` is TOML, `result` a `Result` as dict."""
    kept = ("constructor", "settings", "texts", "dropped", "sizes", "vocabulary_fingerprint")
    cards = [published_settings({key: card[key] for key in kept}) for card in result["targets"].values()]
    targets = json.dumps(cards, indent=2)
    corpus, evaluation = result["corpus"], result["evaluation"]
    training = "\n".join(
        f"- Training, {name}: {stage['steps']:,} steps, {stage['texts']:,} texts, {stage['tokens']:,} tokens, "
        f"{stage['seconds']:,} s; loss {stage['first_loss']} → {stage['last_loss']} nats."
        for name, stage in result["stages"].items()
    )
    scores = ""
    if evaluation:
        rows = "\n".join(
            f"| {name} | {score['mrr_at_10']:.1f} | {score['ndcg_at_10']:.1f} | {score['recall_at_10']:.1f} |"
            for name, score in (
                ("untrained, the same in all else", evaluation["untrained"]),
                ("**this model**", evaluation["trained"]),
                ("TF-IDF", evaluation["tfidf"]),
            )
        )
        scores = f"""
## Label-free evaluation

{evaluation["trained"]["queries"]} held-out documents; the title or first half of each must find its body or
second half among all of them. This measures matching parts of a document on this corpus, and no more.

| | MRR@10 | nDCG@10 | Recall@10 |
|---|---|---|---|
{rows}
"""
    settings = tomllib.loads(recipe)
    return f"""{_front(settings["backbone"]["name"])}
# A text embedder trained without labels

{USAGE}
The prompt is part of the tokenizer: give plain text. Plain sentence-transformers modules, no further code needed.

## How it was made

{_made(settings)}

- Corpus: {corpus["documents"]:,} documents; {corpus["empty"]:,} empty and {corpus["duplicates"]:,} duplicate ones were left
  out and {corpus["held_out"]:,} held out; {corpus["broken"]:,} lines beside them were broken;
  {corpus["passages"]:,} passages.
{training}
- Versions: {_versions()}.
{scores}
## Settings

Files of text are named by their kind only, and models on the disk by the last part of their path.

```toml
{published_recipe(recipe).strip()}
```

## Targets

```json
{targets}
```
"""


def _made(settings: dict[str, Any]) -> str:
    """Return in words what a run with these settings did, step by step."""
    stages = settings["stages"]
    sentences = ["text2token trained it without labels."]
    if any(stage["contrast"] < 1 for stage in stages):
        sentences.append(
            "The embedding of a text, decoded through the backbone's language-model head, learnt to predict the text's "
            "key tokens (KL divergence)."
        )
    if any(stage["contrast"] for stage in stages):
        sentences.append("Passages of the same document learnt to find each other among those of their batch (InfoNCE).")
    if cut := settings["cut_layers"]:
        sentences.append(
            f"The last {'layer' if cut == 1 else f'{cut} layers'} took part in the training, not in the embedder."
        )
    sentences.append(POSTPROCESSING[settings["postprocessing"]])
    return "\n".join(textwrap.wrap(" ".join(sentences), 120))


POSTPROCESSING: dict[str, str] = {
    "none": "Embeddings are scaled to unit length and nothing else (the `Dense` module is the identity).",
    "centred": "The mean embedding of a sample of the corpus is subtracted and the rest turned to its principal axes",
    "whitened": "Embeddings are gently whitened by a sample of the corpus (variances evened out a little)",
}
POSTPROCESSING |= {
    kind: f"{words}, in the `Dense` module, and scaled to unit length. The first dimensions carry most: vectors can be cut "
    "(`truncate_dim`) and are then to be scaled to unit length again (`encode(…, normalize_embeddings=True)`)."
    for kind, words in POSTPROCESSING.items()
    if kind != "none"
}


def _front(backbone: str) -> str:
    """Return the hub's metadata; the backbone is named there when it is the hub's itself."""
    is_hub_id = HUB_ID.fullmatch(backbone) and not Path(backbone).exists()
    return FRONT.replace("tags:", f"base_model: {backbone}\ntags:") if is_hub_id else FRONT


def _versions() -> str:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES]
    return ", ".join([*versions, f"Python {platform.python_version()}"])
