"""LLM2Vec (BehnamGhader et al. 2024) in full: attention in both directions, masked next-token prediction, then SimCSE.

    MNTP    -log p(token i | hidden state at i - 1), at masked positions i; the model sees all the others
    SimCSE  mean pooling over the merged MNTP model, new adapters whose dropout is the noise

The published runs process half as many tokens in MNTP as in SimCSE; the budget is shared in that proportion.
"""

from dataclasses import asdict, dataclass

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from text2token import LoraSettings, StageSettings, load_embedder
from text2token_bench.inside import (
    LanguageModelHead,
    StageResult,
    add_lora,
    load_head,
    plan,
    text_lengths,
    tokenizer_of,
    train_stage,
)
from text2token_bench.peers.contrastive import ContrastiveSettings, train_contrastive
from text2token_bench.peers.peer import Built, Peer, Settings, Workshop, finished, merge_adapters
from text2token_bench.peers.simcse import same_text_twice

MASK = "_"  # decoders have no mask token; the authors take this one
SHARE_OF_MNTP = 1 / 3


@dataclass(frozen=True)
class Llm2VecSettings:
    """Rates of both stages; the rest is as published: a fifth of the tokens masked, attention dropout 0.3 in SimCSE."""

    mntp_learning_rate: float
    simcse_learning_rate: float
    masked: float = 0.2
    dropout: float = 0.05
    attention_dropout: float = 0.3


CANDIDATES = (
    Llm2VecSettings(mntp_learning_rate=5e-5, simcse_learning_rate=3e-5),
    Llm2VecSettings(mntp_learning_rate=5e-4, simcse_learning_rate=3e-4),
    Llm2VecSettings(mntp_learning_rate=1e-3, simcse_learning_rate=1e-4),
)


class MaskedNextTokenLoss(nn.Module):
    """Chooses a share of the tokens and predicts each from the position before it, mean over the chosen tokens.

    As in BERT, four in five of the chosen are masked, one in ten is replaced at random, one in ten left unchanged.
    """

    def __init__(self, model: SentenceTransformer, head: LanguageModelHead, masked: float) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.masked = masked
        self.mask_id = tokenizer_of(model)(MASK, add_special_tokens=False)["input_ids"][-1]

    def forward(self, sentence_features: list[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        features = sentence_features[0]
        token_ids, present = features["input_ids"], features["attention_mask"].bool()
        chosen = (torch.rand(token_ids.shape, device=token_ids.device) < self.masked) & present
        fate = torch.rand(token_ids.shape, device=token_ids.device)
        others = torch.randint_like(token_ids, self.head.vocabulary_size)
        seen = torch.where(fate < 0.8, self.mask_id, torch.where(fate < 0.9, others, token_ids))
        return self.loss(features, chosen, torch.where(chosen, seen, token_ids))

    def loss(self, features: dict[str, Tensor], chosen: Tensor, seen: Tensor) -> Tensor:
        """Return the loss at the `chosen` positions when the model sees the ids `seen`; shapes (batch, length).

        The first token has no position before it and is never asked for.
        """
        token_ids = features["input_ids"]
        hidden = self.model[0]({**features, "input_ids": seen})["token_embeddings"]
        asked = chosen[:, 1:] & features["attention_mask"][:, :-1].bool()
        logits = self.head(hidden[:, :-1][asked].float())
        return cross_entropy(logits, token_ids[:, 1:][asked]) if asked.any() else hidden.sum() * 0


def train_mntp(workshop: Workshop, settings: Llm2VecSettings, embedder: SentenceTransformer) -> StageResult:
    """Adapt `embedder`, whose attention looks in both directions, by masked next-token prediction, and merge, in place."""
    head = load_head(embedder, workshop.backbone.name)
    add_lora(embedder, LoraSettings(dropout=settings.dropout), workshop.seed)
    stage = StageSettings(
        learning_rate=settings.mntp_learning_rate,
        max_tokens=max(1, round(SHARE_OF_MNTP * workshop.max_tokens)),
        epochs=1000,
        tokens_per_batch=1024,
    )
    texts = workshop.passages.select_columns(["text"])
    schedule = plan(text_lengths(embedder, texts), stage.schedule, workshop.seed)
    with workshop.reporter.progress("Training, MNTP", schedule.tokens_to_see, "tokens") as progress:
        result = train_stage(
            embedder,
            MaskedNextTokenLoss(embedder, head, settings.masked),
            texts,
            schedule,
            stage,
            workshop.folder / "mntp",
            collator=SentenceTransformerDataCollator(preprocess_fn=embedder.preprocess),
            progress=progress,
        )
    merge_adapters(workshop, embedder)
    return result


def build(workshop: Workshop, settings: Settings) -> Built:
    """Return the embedder after both stages."""
    chosen = Llm2VecSettings(**settings)
    embedder = load_embedder(workshop.backbone_with(prompt="{text}", pooling="mean", attention="bidirectional"))
    first = train_mntp(workshop, chosen, embedder)
    contrast = ContrastiveSettings(
        learning_rate=chosen.simcse_learning_rate, dropout=chosen.dropout, attention_dropout=chosen.attention_dropout
    )
    left = max(1, workshop.max_tokens - first.tokens)
    pairs = same_text_twice(workshop.passages)
    embedder, second = train_contrastive(workshop, contrast, pairs, embedder=embedder, max_tokens=left)
    return finished(workshop, embedder, "LLM2Vec", first.tokens + second.tokens)


PEERS = (Peer("LLM2Vec", "contrastive", build, tuple(asdict(c) for c in CANDIDATES), seeded=True),)
