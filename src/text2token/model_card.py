"""The README of an exported embedder: how it was made, from what, and how to use it."""

import importlib.metadata
import json
import platform
from typing import Any

LIBRARIES = ("text2token", "sentence-transformers", "transformers", "torch", "peft")


def model_card(recipe: str, result: dict[str, Any]) -> str:
    """Return the card as Markdown with the hub's metadata block; `recipe` is TOML, `result` a `RunResult` as dict."""
    kept = ("constructor", "settings", "texts", "dropped", "vocabulary_fingerprint")
    targets = json.dumps([{key: card[key] for key in kept} for card in result["targets"].values()], indent=2)
    corpus, evaluation = result["corpus"], result["evaluation"]
    training = "\n".join(
        f"- Training, {name}: {stage['steps']:,} steps, {stage['texts']:,} texts, {stage['tokens']:,} tokens, "
        f"{stage['seconds']:,} s; loss {stage['first_loss']} → {stage['last_loss']} nats."
        for name, stage in result["stages"].items()
    )
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    scores = ""
    if evaluation:
        rows = "\n".join(
            f"| {name} | {score['mrr_at_10']:.1f} | {score['ndcg_at_10']:.1f} | {score['recall_at_10']:.1f} |"
            for name, score in (
                ("untrained, same prompt, pooling and centring", evaluation["untrained"]),
                ("**this model**", evaluation["trained"]),
                ("TF-IDF", evaluation["tfidf"]),
            )
        )
        scores = f"""
## Label-free evaluation

{evaluation["trained"]["queries"]} held-out documents; the title or first half of each must find its own body or
second half among all of them. This measures matching parts of a document on this corpus, and no more.

| | MRR@10 | nDCG@10 | Recall@10 |
|---|---|---|---|
{rows}
"""
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, sentence-similarity, feature-extraction, text2token]
---

# A text embedder trained without labels

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
embeddings = model.encode(["a text", "another text"])   # unit length; compare by dot product
```

The prompt is part of the tokenizer: give plain text. Plain sentence-transformers modules, no code of ours needed.

## How it was made

text2token: the embedding of a text, decoded through the backbone's own language-model head, was trained to predict the
text's key tokens (KL divergence), without labels, pairs or negatives. Afterwards the mean embedding of the corpus was
subtracted (the `Dense` module) and vectors are scaled to unit length.

- Corpus: {corpus["documents"]:,} documents, of which {corpus["broken"]:,} broken, {corpus["empty"]:,} empty and
  {corpus["duplicates"]:,} duplicate ones were left out and {corpus["held_out"]:,} held out;
  {corpus["passages"]:,} passages.
{training}
- Versions: {versions}, Python {platform.python_version()}.
{scores}
## Settings

```toml
{recipe.strip()}
```

## Targets

```json
{targets}
```
"""
