"""Our own method, under the same rules as its peers, and its control with shuffled targets."""

from dataclasses import dataclass
from functools import partial

from text2token.adapters import LoraSettings, blend_lora
from text2token.backbone import embed, load_embedder, tokenizer_of
from text2token.baselines.peer import Built, Peer, Settings, Workshop, finished
from text2token.head import load_head
from text2token.leaderboard import Family
from text2token.recipe import make_trainable, train_on_targets, write_targets_of
from text2token.targets.constructors import ConstructorName, Materials, TargetSettings
from text2token.targets.corpus_derived import CorpusDerivedSettings
from text2token.targets.model_derived import ModelDerivedSettings
from text2token.targets.store import open_targets, shuffle_targets
from text2token.training import StageSettings
from text2token.vocabulary import TargetVocabulary


@dataclass(frozen=True)
class TokenTargetSettings:
    """One or two stages, each a kind of targets, and how to take them; the budget is shared as `shares` say."""

    stages: tuple[ConstructorName, ...] = ("data_driven",)
    shares: tuple[float, ...] = (1.0,)
    learning_rate: float = 3e-4
    blend: float = 0.5
    data_driven_share: float = 0.5


def build(workshop: Workshop, settings: Settings, name: str, shuffled: bool = False) -> Built:
    """Return the embedder that was trained on token targets of the passages, stage by stage."""
    chosen = TokenTargetSettings(**settings)
    embedder = load_embedder(workshop.backbone)
    head = load_head(embedder, workshop.backbone.name)
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer_of(embedder))
    kinds = TargetSettings(
        model_derived=ModelDerivedSettings(data_driven_share=chosen.data_driven_share),
        corpus_derived=CorpusDerivedSettings(data_driven_share=chosen.data_driven_share),
    )
    materials = Materials(workshop.backbone, embedder, vocabulary, kinds)
    stages = [
        StageSettings(
            targets=kind,
            learning_rate=chosen.learning_rate,
            max_tokens=round(share * workshop.max_tokens),
            epochs=1000,
            tokens_per_batch=512,
        )
        for kind, share in zip(chosen.stages, chosen.shares, strict=True)
    ]
    folders = [workshop.folder / f"targets-{number}" for number in range(len(stages))]
    for kind, stage, folder in zip(chosen.stages, stages, folders, strict=True):  # before training: they ask the backbone
        write_targets_of(kind, materials, workshop.passages, [stage], workshop.seed, folder, workshop.reporter)
    centre = embed(embedder, workshop.sample()).mean(0)
    make_trainable(embedder, LoraSettings(), workshop.seed)
    tokens = 0
    for stage, folder in zip(stages, folders, strict=True):
        targets = open_targets(folder, vocabulary, cache=workshop.folder / "cache")
        if shuffled:
            targets = shuffle_targets(targets, workshop.seed)
        checkpoints = folder.with_name(f"{folder.name}-checkpoints")
        result = train_on_targets(
            embedder, head, targets, centre, stage, workshop.seed, checkpoints, reporter=workshop.reporter
        )
        tokens += result.tokens
    blend_lora(embedder, chosen.blend)
    return finished(workshop, embedder, name, tokens)


def _peer(name: str, family: Family, *candidates: Settings, shuffled: bool = False) -> Peer:
    return Peer(name, family, partial(build, name=name, shuffled=shuffled), candidates, seeded=True)


OURS = _peer(
    "text2token, data-driven",
    "text2token",
    {"learning_rate": 3e-4, "blend": 0.5},
    {"learning_rate": 3e-4, "blend": 1.0},
    {"learning_rate": 1e-4, "blend": 1.0},
)
_TWO = {"shares": (0.7, 0.3), "learning_rate": 1e-4, "blend": 1.0}
TWO_STAGES = _peer(
    "text2token, two stages",
    "text2token",
    {"stages": ("data_driven", "model_derived"), "data_driven_share": 0.0, **_TWO},
    {"stages": ("data_driven", "model_derived"), "data_driven_share": 0.5, **_TWO},
    {"stages": ("data_driven", "corpus_derived"), "data_driven_share": 0.5, **_TWO},
)
CONTROL = _peer("shuffled targets", "control", OURS.candidates[0], shuffled=True)
PEERS = (OURS, TWO_STAGES, CONTROL)
