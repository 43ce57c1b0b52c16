"""Our own method, under the same rules as its peers, and its control with shuffled targets."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from text2token.adapters import LoraSettings, blend_lora
from text2token.backbone import embed, load_embedder, tokenizer_of
from text2token.baselines.peer import Built, Peer, Settings, Workshop, finished
from text2token.head import load_head
from text2token.recipe import make_trainable, train_on_targets, write_targets_of
from text2token.targets.constructors import Materials, TargetSettings
from text2token.targets.store import open_targets, shuffle_targets
from text2token.training import StageSettings
from text2token.vocabulary import TargetVocabulary


def build(workshop: Workshop, settings: Settings, name: str, shuffled: bool = False) -> Built:
    """Return the embedder that was trained on data-driven targets of the passages."""
    stage = StageSettings(
        learning_rate=settings["learning_rate"], max_tokens=workshop.max_tokens, epochs=1000, tokens_per_batch=512
    )
    embedder = load_embedder(workshop.backbone)
    head = load_head(embedder, workshop.backbone.name)
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer_of(embedder))
    folder: Path = workshop.folder / "targets"
    materials = Materials(workshop.backbone, embedder, vocabulary, TargetSettings())
    write_targets_of("data_driven", materials, workshop.passages, folder)
    targets = open_targets(folder, vocabulary, cache=workshop.folder / "cache")
    if shuffled:
        targets = shuffle_targets(targets, workshop.seed)
    centre = embed(embedder, workshop.sample()).mean(0)
    make_trainable(embedder, LoraSettings(), workshop.seed)
    checkpoints = workshop.folder / "checkpoints"
    result = train_on_targets(embedder, head, targets, centre, stage, workshop.seed, checkpoints, reporter=workshop.reporter)
    blend_lora(embedder, settings["blend"])
    return finished(workshop, embedder, name, result.tokens)


def _settings(learning_rate: float, blend: float) -> dict[str, Any]:
    return {"learning_rate": learning_rate, "blend": blend}


OURS = Peer(
    "text2token, data-driven",
    "text2token",
    partial(build, name="text2token, data-driven"),
    (_settings(3e-4, 0.5), _settings(3e-4, 1.0), _settings(1e-4, 1.0)),
    seeded=True,
)
CONTROL = replace(
    OURS,
    name="shuffled targets",
    family="control",
    build=partial(build, name="shuffled targets", shuffled=True),
    candidates=OURS.candidates[:1],
)
PEERS = (OURS, CONTROL)
