"""Our own method, under the same rules as its peers, and its control with shuffled targets."""

from functools import partial

from text2token.backbone import embed, load_embedder, tokenizer_of
from text2token.baselines.peer import Built, Peer, Settings, Workshop, finished
from text2token.head import load_head
from text2token.leaderboard import Family
from text2token.recipe import Recipe, RunFolder, made_from, train, write_targets_of
from text2token.vocabulary import TargetVocabulary

STAGE2_SHARE = "stage2_share"


def build(workshop: Workshop, settings: Settings, name: str) -> Built:
    """Return the embedder that a recipe makes of the passages.

    `settings` are the recipe's, by their dotted names; `stage2_share` is the share of the budget that the second stage has.
    """
    second = float(settings.get(STAGE2_SHARE, 0))
    lengths = {"stage1": 1 - second, "stage2": second}
    chosen = {f"{stage}.max_tokens": round(share * workshop.max_tokens) for stage, share in lengths.items() if share}
    chosen |= {f"{stage}.epochs": 1000 for stage in lengths} | {f"{stage}.tokens_per_batch": 512 for stage in lengths}
    chosen |= {key: value for key, value in settings.items() if key != STAGE2_SHARE}
    recipe = Recipe(workshop.backbone, seed=workshop.seed).with_settings(f"{key}={value}" for key, value in chosen.items())
    embedder = load_embedder(recipe.backbone)
    head = load_head(embedder, recipe.backbone.name)
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer_of(embedder), recipe.vocabulary)
    work, steps, sample = RunFolder(workshop.folder / "run"), made_from(recipe, None), workshop.sample()
    write_targets_of(recipe, embedder, vocabulary, workshop.passages, work, steps, workshop.reporter)
    mean = embed(embedder, sample).mean(0)
    results = train(recipe, embedder, head, vocabulary, sample, mean, work, steps, workshop.reporter)
    return finished(workshop, embedder, name, sum(result.tokens for result in results.values()))


def variant(name: str, *candidates: Settings, family: Family = "text2token") -> Peer:
    """Return a peer that makes embedders by our recipe with other settings."""
    return Peer(name, family, partial(build, name=name), candidates, seeded=True)


_SLOW = {"stage1.learning_rate": 1e-4, "lora.blend": 1.0}
_SECOND = {**_SLOW, "stage2.learning_rate": 1e-4, STAGE2_SHARE: 0.3}
PEERS = (
    variant(
        "text2token, data-driven",
        {"stage1.learning_rate": 3e-4, "lora.blend": 0.5},
        {"stage1.learning_rate": 3e-4, "lora.blend": 1.0},
        _SLOW,
    ),
    variant(
        "text2token, two stages",
        {**_SECOND, "stage2.targets": "model_derived"},
        {**_SECOND, "stage2.targets": "model_derived", "targets.model_derived.data_driven_share": 0.5},
        {**_SECOND, "stage2.targets": "corpus_derived"},
    ),
    variant(
        "shuffled targets",
        {"stage1.learning_rate": 3e-4, "lora.blend": 0.5, "shuffled_targets": True},
        family="control",
    ),
)
