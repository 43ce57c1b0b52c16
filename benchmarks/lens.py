"""How is a finished embedder best read? Every reader of one trained model, on documents that none of them has seen.

    python benchmarks/lens.py RUN_FOLDER [--states FILE]

RUN_FOLDER is what `text2token train` leaves beside the model: from it the trained embedder is put together again with all
its layers, which the finished one lacks. Readers are learnt on the texts that the finish was learnt on, and read the
held-out passages and queries. Embeddings at both depths are kept in FILE for the next call.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import normalize

from text2token.adapters import add_lora, blend_lora
from text2token.backbone import embed, load_embedder, prompt_tokens, tokenizer_of, without_last_layers
from text2token.corpus.prepare import Corpus
from text2token.evaluation.before_after import EvaluationTexts
from text2token.head import load_head
from text2token.isotropy import fit_isotropy
from text2token.lens.learning import head_directions, learn_from_head, learn_from_words
from text2token.lens.metrics import alignment_of_scores
from text2token.lens.reader import WordSplitter
from text2token.recipe import Recipe, RunFolder, read_recipe
from text2token.terminal import TerminalReporter, quiet_libraries
from text2token.training import load_trainable


def trained_embedder(recipe: Recipe, work: RunFolder) -> SentenceTransformer:
    """Return the embedder as it was after its last stage, all layers there."""
    embedder = load_embedder(recipe.backbone)
    if recipe.lora.rank:
        add_lora(embedder, recipe.lora, recipe.seed)
    for name in recipe.stages:
        load_trainable(embedder, load_file(work.stages / name / "weights.safetensors"))
    blend_lora(embedder, recipe.lora.blend)
    return embedder


def both_depths(embedder: SentenceTransformer, parts: dict[str, list[str]], cut_layers: int) -> dict[str, Tensor]:
    """Return the embeddings of all parts after the last layer ("last.…") and where the finished embedder ends ("cut.…")."""
    states: dict[str, Tensor] = {}
    total = 2 * sum(map(len, parts.values()))
    with TerminalReporter().progress("Embedding at both depths", total, "texts") as progress:
        for name, texts in parts.items():
            states[f"last.{name}"] = embed(embedder, texts, progress)
            with without_last_layers(embedder, cut_layers):
                states[f"cut.{name}"] = embed(embedder, texts, progress)
    return states


def main() -> None:
    """Learn every reader, print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--states", type=Path)
    chosen = parser.parse_args()
    quiet_libraries()
    work = RunFolder(chosen.run)
    recipe = read_recipe(str(work.recipe))
    corpus = Corpus.open(work.corpus)
    texts = EvaluationTexts.of(corpus.passages, corpus.held_out, recipe.seed)
    parts = {"sample": texts.sample, "passages": texts.passages, "queries": texts.queries}
    embedder = trained_embedder(recipe, work)
    if chosen.states and chosen.states.exists():
        states = load_file(chosen.states)
    else:
        states = both_depths(embedder, parts, recipe.cut_layers)
        if chosen.states:
            save_file(states, chosen.states)

    tokenizer = tokenizer_of(embedder)
    room = tokenizer.model_max_length - prompt_tokens(tokenizer)
    splitter = WordSplitter(tokenizer, recipe.vocabulary)
    head = load_head(embedder, recipe.backbone.name)
    whitening = fit_isotropy(states["cut.sample"], recipe.isotropy)
    spread = {name: whitening(states[f"cut.{name}"]) for name in parts}
    finished = {name: normalize(vectors) for name, vectors in spread.items()}
    said, rows = head_directions(head, splitter)
    options = {"vocabulary": recipe.vocabulary, "max_tokens": room}
    there = {name: splitter.words_in(parts[name], room) for name in ("passages", "queries")}
    console, table = (
        Console(highlight=False),
        Table("reader", "held-out", "Hit@1", "Hit@5", "first 10 in text", "LAR", "GAR"),
    )

    def row(name: str, lexicon: tuple[str, ...], scores: dict[str, Tensor]) -> None:
        for part, words in there.items():
            found = alignment_of_scores(scores[part], lexicon, words)
            figures = (found.hit_at_1, found.hit_at_5, found.precision_at_10, found.lar, found.gar)
            table.add_row(name, part, *(f"{figure:.1f}" for figure in figures))

    by_words = learn_from_words(texts.sample, finished["sample"], finished["sample"][:3], tokenizer, **options)  # type: ignore[arg-type]
    counted = Counter(word for words in splitter.words_in(texts.sample, room) for word in words)
    counts = torch.tensor([float(counted[word]) for word in by_words.lexicon])
    row("always the most common words", by_words.lexicon, {part: counts.expand(len(there[part]), -1) for part in there})
    for name, depth in (("head after the last layer (the finished model lacks it)", "last"), ("head where it ends", "cut")):
        mean = states[f"{depth}.sample"].mean(0)
        row(name, said, {part: (states[f"{depth}.{part}"] - mean) @ rows.T for part in there})
    for how, vectors in (("unit length", finished), ("before unit length", spread)):
        reader = learn_from_head(states["last.sample"], vectors["sample"], vectors["sample"][:3], head, tokenizer, **options)  # type: ignore[arg-type]
        row(f"ridge to the last layer, then the head; {how}", said, {part: reader.scores(vectors[part]) for part in there})
    for how, vectors in (("before unit length", spread), ("unit length", finished)):
        reader = learn_from_words(texts.sample, vectors["sample"], vectors["sample"][:3], tokenizer, **options)  # type: ignore[arg-type]
        row(f"ridge to the words; {how}", reader.lexicon, {part: reader.scores(vectors[part]) for part in there})
    console.print(table)
    console.print(
        json.dumps({"texts": {name: len(content) for name, content in parts.items()}, "words": len(reader.lexicon)})
    )
    for row_number in range(3):
        console.print(" ".join(texts.passages[row_number].split())[:160], markup=False)
        after_last = states["last.passages"][row_number] - states["last.sample"].mean(0)
        best = torch.topk(rows @ after_last, 8).indices.tolist()
        console.print("  head after the last layer:", ", ".join(said[index] for index in best))
        console.print(
            "  ridge to the words:", ", ".join(word.word for word in reader.words(finished["passages"][row_number][None])[0])
        )


if __name__ == "__main__":
    main()
