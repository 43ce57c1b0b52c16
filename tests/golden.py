"""Two tiny runs, the default recipe and the paper's, and what came of them: a few figures, or digests of every bit.

`test_golden.py` holds the figures to `golden.json`. Digests are for comparing two states of the code on one machine:

    python tests/golden.py > before; …; python tests/golden.py | diff before -
    python tests/golden.py --write      # where figures are meant to change
"""

import hashlib
import json
import os
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from conftest import TEXTS, save_backbone, trained_byte_level
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from text2token import BackboneSettings, Recipe, read_recipe, train

GOLDEN = Path(__file__).with_name("golden.json")
RECIPES = ("default", "paper")
SHOWN_TARGETS = 3
SMALL = ["backbone.dtype=float32", "backbone.max_length=64", "corpus.held_out=10", "evaluation_steps=2"]
SETTINGS = {
    "default": ["stage1.tokens_per_batch=256"],
    "paper": [
        *("stage1.max_tokens=2000", "stage2.max_tokens=600", "stage1.texts_per_batch=8", "stage2.texts_per_batch=8"),
        *("targets.likelihood_ratio.prior_texts=20", "targets.likelihood_ratio.tau=auto"),
    ],
}


def write_documents(path: Path) -> None:
    """Write eighty texts of one to five sentences, drawn from the words of `TEXTS`: no two are nearly the same."""
    draw, words = random.Random(7), sorted({word for text in TEXTS for word in text.split()})
    with path.open("w", encoding="utf-8") as file:
        for _ in range(80):
            sentences = [[draw.choice(words) for _ in range(draw.randint(5, 14))] for _ in range(draw.randint(1, 5))]
            file.write(" ".join(" ".join(sentence).capitalize() + "." for sentence in sentences) + "\n")


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Stand in `folder`, so that no path that is written down depends on the machine."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def make(name: str, folder: Path) -> None:
    """Train by the recipe `name` on a tiny model: `folder` then holds MODEL and MODEL.run."""
    save_backbone("llama_tied", trained_byte_level(TEXTS, size=600), folder / "backbone")
    write_documents(folder / "docs.txt")
    recipe = Recipe(BackboneSettings("backbone")) if name == "default" else read_recipe(name)
    recipe = replace(recipe, sources=("docs.txt",)).with_settings(["backbone.name=backbone", *SMALL, *SETTINGS[name]])
    with working_in(folder):
        train(recipe, output=Path("model"))


def targets_of(folder: Path) -> dict[str, list[dict[int, float]]]:
    """Return of every stage the targets, token → weight, in the order of the corpus."""
    return {
        stage.name: [
            dict(sorted(zip(row["token_ids"], row["weights"], strict=True)))
            for file in sorted(stage.glob("*.parquet"))
            for row in pq.read_table(file).to_pylist()
        ]
        for stage in sorted((folder / "model.run" / "targets").iterdir())
        if stage.is_dir()
    }


def figures(folder: Path) -> dict[str, Any]:
    """Return what is compared across machines: tokens exactly, all else as norms and cosines."""
    model = SentenceTransformer(str(folder / "model"))
    vectors = model.encode(TEXTS[:6], convert_to_tensor=True, batch_size=1)
    vectors = torch.nn.functional.normalize(vectors - vectors.mean(0))
    targets = targets_of(folder)
    trained = {
        stage.name: load_file(stage / "weights.safetensors") for stage in sorted((folder / "model.run" / "stages").iterdir())
    }
    return {
        "tokens": {stage: sha256(json.dumps([list(row) for row in rows])) for stage, rows in targets.items()},
        "targets": {stage: [weights(row) for row in rows[:SHOWN_TARGETS]] for stage, rows in targets.items()},
        "weights": {
            stage: {name: float(value.norm()) for name, value in sorted(tensors.items()) if ".lora_B." in name}
            for stage, tensors in trained.items()
        },
        "dense": {name: float(value.norm()) for name, value in model.state_dict().items() if not name.startswith("0.")},
        "cosines": (vectors @ vectors.T)[*torch.triu_indices(6, 6, 1)].tolist(),
        "files": sorted(path.relative_to(folder).as_posix() for path in (folder / "model").rglob("*") if path.is_file()),
        "configs": {
            name: json.loads((folder / "model" / name).read_text(encoding="utf-8"))
            for name in ("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "sentence_bert_config.json")
        },
    }


def weights(row: dict[int, float]) -> dict[str, float]:
    return {str(token): round(weight, 8) for token, weight in row.items()}


def digests(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and digest of every file of run and model, but for times, logs and the card's settings."""
    for path in sorted(path for place in ("model.run", "model") for path in (folder / place).rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith("events.out") or path.name == "steps.json":
            continue
        content = path.read_bytes()
        if path.suffix in (".json", ".md"):
            content = re.sub(rb'"seconds": ([\d.]+|\{[^}]*\})|[\d.,]+ s; loss', b"", content)
        yield name, sha256(content)
    vectors = SentenceTransformer(str(folder / "model")).encode(TEXTS, batch_size=1)
    yield "vectors", sha256(vectors.tobytes())


def sha256(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def main() -> None:
    os.environ["TQDM_DISABLE"] = "1"
    found: dict[str, Any] = {}
    for recipe in RECIPES:
        with tempfile.TemporaryDirectory() as place:
            make(recipe, Path(place))
            found[recipe] = figures(Path(place))
            for name, digest in digests(Path(place)):
                print(f"{digest}  {recipe}/{name}")
    if "--write" in sys.argv:
        GOLDEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
