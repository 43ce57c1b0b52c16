"""How is a finished embedder best read? Every reader of one trained model, on documents that none of them has seen.

    python bench/experiments/lens.py RUN_FOLDER [--states FILE]

RUN_FOLDER is what `text2token train` leaves beside the model: from it the trained embedder is put together again with all
its layers, which the exported one lacks. Readers are learnt on the texts that the whitening was learnt on, and read the
held-out passages and queries. Embeddings at both depths are kept in FILE for the next call.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import normalize

from text2token.cli.show import TerminalReporter, quiet_libraries
from text2token.corpus.prepare import Corpus
from text2token.evaluation.alignment import alignment_of_scores
from text2token.evaluation.comparison import EvaluationTexts
from text2token.lens.fit import head_directions, joined, learn_from_head, learn_from_words
from text2token.lens.reader import TokenReader
from text2token.model.adapters import add_lora
from text2token.model.backbone import embed, load_embedder, room_for_text, tokenizer_of, without_last_layers
from text2token.model.head import CENTRE_TEXTS, load_head
from text2token.model.whitening import fit_postprocessing
from text2token.recipe import Recipe, read_recipe
from text2token.tokens.words import WordSplitter
from text2token.training.checkpoints import load_trainable
from text2token.training.folder import RunFolder


def trained_embedder(recipe: Recipe, work: RunFolder) -> SentenceTransformer:
    """Return the embedder as it was after its last stage, all layers there."""
    embedder = load_embedder(recipe.backbone)
    for name in recipe.named_stages:
        if recipe.lora.rank:
            add_lora(embedder, recipe.lora, recipe.seed)
        load_trainable(embedder, load_file(work.stages / name / "weights.safetensors"))
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
    room = room_for_text(tokenizer)
    splitter = WordSplitter(tokenizer, recipe.vocabulary)
    head = load_head(embedder, recipe.backbone.name)
    whitening = fit_postprocessing(states["cut.sample"], recipe.postprocessing)
    spread = {name: whitening(states[f"cut.{name}"]) for name in parts}
    finished = {name: normalize(vectors) for name, vectors in spread.items()}
    said, rows = splitter.words.lexicon, head_directions(head, splitter.words)
    there = {name: splitter.words_in(parts[name], room) for name in ("passages", "queries")}
    counted = Counter(word for words in splitter.words_in(texts.sample, room) for word in words)
    names = ("Hit@1", "Hit@5", "first 10 in text", "one of 3 rarest in first 10", "LAR", "GAR")
    console, table = Console(highlight=False), Table("reader", "held-out", *names)

    def row(name: str, lexicon: tuple[str, ...], scores: dict[str, Tensor]) -> None:
        for part, words_of in there.items():
            kept = [number for number, words in enumerate(words_of) if words]
            found = alignment_of_scores(scores[part], lexicon, words_of)
            rare = 0
            for number, ten in zip(kept, scores[part][kept].topk(10).indices.tolist(), strict=True):
                rarest = sorted(words_of[number], key=lambda word: (counted[word], word))[:3]
                rare += not {lexicon[index] for index in ten}.isdisjoint(rarest)
            figures = (found.hit_at_1, found.hit_at_5, found.precision_at_10, 100 * rare / len(kept), found.lar, found.gar)
            table.add_row(name, part, *(f"{figure:.1f}" for figure in figures))

    def from_words(vectors: Tensor) -> TokenReader:
        return learn_from_words(texts.sample, vectors, vectors[:3], tokenizer, vocabulary=recipe.vocabulary, max_tokens=room)

    def from_head(vectors: Tensor, count: int) -> TokenReader:
        learnt_on = states["last.sample"][:count], vectors[:count], vectors[:3]
        return learn_from_head(*learnt_on, head, tokenizer, vocabulary=recipe.vocabulary, max_tokens=room)

    by_words, whole = from_words(finished["sample"]), len(texts.sample)
    counts = torch.tensor([float(counted[word]) for word in by_words.lexicon])
    row("always the most common words", by_words.lexicon, {part: counts.expand(len(there[part]), -1) for part in there})
    for name, depth in (("head after the last layer (the finished model lacks it)", "last"), ("head where it ends", "cut")):
        mean = states[f"{depth}.sample"].mean(0)
        row(name, said, {part: (states[f"{depth}.{part}"] - mean) @ rows.T for part in there})
    for how, vectors in (("before unit length", spread), ("unit length", finished)):
        by_head, words = from_head(vectors["sample"], whole), from_words(vectors["sample"])
        row(f"ridge to the last layer, then the head; {how}", said, {part: by_head.scores(vectors[part]) for part in there})
        row(f"ridge to the words; {how}", words.lexicon, {part: words.scores(vectors[part]) for part in there})
    readers = {"words": by_words}
    for count in (whole, CENTRE_TEXTS):
        both = joined(by_words, from_head(finished["sample"], count), finished["sample"])
        row(f"both; the head's from {count:,} texts", said, {part: both.scores(finished[part]) for part in there})
        readers[f"both, {count}"] = both
    console.print(table)
    for name, reader in readers.items():
        pairs = [reader.contributions(*pair) for pair in zip(finished["passages"], finished["queries"], strict=True)]
        cosine, common, explained = (
            sum(getattr(pair, part) for pair in pairs) / len(pairs) for part in ("cosine", "common", "explained")
        )
        console.print(f"pairs, {name}: cosine {cosine:.3f} = words {explained:.3f} + common {common:.3f} + rest")
    for number in range(3):
        console.print(" ".join(texts.passages[number].split())[:160], markup=False)
        after_last = states["last.passages"][number] - states["last.sample"].mean(0)
        best = torch.topk(rows @ after_last, 8).indices.tolist()
        console.print("  head after the last layer:", ", ".join(said[index] for index in best))
        for name, reader in readers.items():
            console.print(f"  {name}:", ", ".join(word.word for word in reader.words(finished["passages"][number][None])[0]))


if __name__ == "__main__":
    main()
