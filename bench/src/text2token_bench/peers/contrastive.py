"""What contrastive peers share: pairs of texts that belong together, the other texts of a batch as negatives.

The loss is sentence-transformers' own, trainer and adapters are those of our method. Batches are drawn at random, not by
length as ours: their texts are each other's negatives.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor

from text2token import BackboneSettings, LoraSettings, StageSettings, load_embedder
from text2token_bench.inside import StageResult, add_lora, cut_last_layers, plan, text_lengths, train_stage
from text2token_bench.peers.peer import Workshop


@dataclass(frozen=True)
class ContrastiveSettings:
    """Settings of one contrastive training; `temperature` divides the cosine.

    A budget of few tokens wants small batches: about 25 pairs of short passages, so that there are steps to learn in.
    Two kinds of noise: `dropout` in the adapters, `attention_dropout` in the backbone's attention weights. `cut_layers`
    are trained with and then left out, as in our own recipe.
    """

    learning_rate: float = 3e-4
    prompt: str = BackboneSettings.prompt
    pooling: Literal["last", "mean", "weighted_mean"] = "last"
    attention: Literal["causal", "bidirectional"] = "causal"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    temperature: float = 0.05
    cut_layers: int = 0
    tokens_per_batch: int = 2048

    def as_settings(self) -> dict[str, Any]:
        """Return what differs from the defaults, for people and files."""
        return {key: value for key, value in asdict(self).items() if value != getattr(ContrastiveSettings(), key)}


class RankingLoss(MultipleNegativesRankingLoss):
    """The stock loss with the cosine in float32: bfloat16 has three digits, and the temperature multiplies by twenty."""

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of each anchor's own positive among all positives of the batch."""
        return super().compute_loss_from_embeddings([embedding.float() for embedding in embeddings], labels)


def train_contrastive(
    workshop: Workshop,
    settings: ContrastiveSettings,
    pairs: Dataset,
    *,
    embedder: SentenceTransformer | None = None,
    loss: type[RankingLoss] = RankingLoss,
    max_tokens: int | None = None,
) -> tuple[SentenceTransformer, StageResult]:
    """Train on `pairs` (`anchor`, `positive`) until the token budget is spent; return the embedder and what was done.

    `embedder` continues from a model that is already loaded. A pair costs the tokens of both texts.
    """
    embedder = embedder or load_embedder(
        workshop.backbone_with(prompt=settings.prompt, pooling=settings.pooling, attention=settings.attention)
    )
    add_lora(embedder, LoraSettings(dropout=settings.dropout), workshop.seed)
    set_attention_dropout(embedder, settings.attention_dropout)
    stage = StageSettings(
        learning_rate=settings.learning_rate,
        max_tokens=max_tokens or workshop.max_tokens,
        epochs=1000,
        tokens_per_batch=settings.tokens_per_batch,
    )
    lengths = text_lengths(embedder, pairs, "anchor") + text_lengths(embedder, pairs, "positive")
    schedule = plan(lengths, stage.schedule, workshop.seed, by_length=False)
    with workshop.reporter.progress("Training", schedule.tokens_to_see, "tokens") as progress:
        result = train_stage(
            embedder,
            loss(embedder, scale=1 / settings.temperature),
            pairs,
            schedule,
            stage,
            workshop.folder / "checkpoints",
            collator=SentenceTransformerDataCollator(preprocess_fn=embedder.preprocess),
            progress=progress,
        )
    cut_last_layers(embedder, settings.cut_layers)
    return embedder, result


def set_attention_dropout(embedder: SentenceTransformer, share: float) -> None:
    """Drop this share of attention weights in training; modules keep their own copy of what the config says."""
    for module in embedder.modules():
        if isinstance(getattr(module, "attention_dropout", None), float | int):
            setattr(module, "attention_dropout", share)  # noqa: B010 (a module's attributes are tensors or modules to mypy)
