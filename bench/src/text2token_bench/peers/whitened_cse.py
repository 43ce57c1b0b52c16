"""WhitenedCSE (Zhuo et al. 2023): SimCSE on embeddings that are whitened in shuffled groups of their channels.

    split the channels, shuffled, into groups → whiten each group over the batch (ZCA) → undo the shuffle

Several shuffles give several positives of a text.
"""

import torch
from torch import Tensor

from text2token_bench.peers.contrastive import ContrastiveSettings, RankingLoss, train_contrastive
from text2token_bench.peers.peer import Built, Peer, Settings, Workshop, finished
from text2token_bench.peers.simcse import same_text_twice

CHANNELS_PER_GROUP = 6  # few against the texts of a batch, else the covariance has no inverse
SHUFFLES = 2
EPSILON = 1e-3  # theirs has none; a batch of few texts would make it blow up
CANDIDATES = (
    ContrastiveSettings(learning_rate=1e-5, tokens_per_batch=4096),
    ContrastiveSettings(learning_rate=3e-4),
    ContrastiveSettings(learning_rate=3e-4, cut_layers=1),
)


def whitened_in_groups(embeddings: Tensor, order: Tensor, channels: int = CHANNELS_PER_GROUP) -> Tensor:
    """Return `embeddings`, shape (texts, dimension), each group of `channels` whitened over the texts.

    `order` is a permutation of the channels; channels that fill no group are left as they are.
    """
    texts, dimension = embeddings.shape
    whole = dimension // channels * channels
    groups = embeddings[:, order[:whole]].reshape(texts, -1, channels).transpose(0, 1)  # (groups, texts, channels)
    centred = groups - groups.mean(1, keepdim=True)
    covariance = centred.transpose(1, 2) @ centred / max(1, texts - 1)
    scale = covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    eigenvalues, eigenvectors = torch.linalg.eigh(
        covariance / scale + EPSILON * torch.eye(channels, device=covariance.device)
    )
    zca = eigenvectors @ torch.diag_embed(eigenvalues.rsqrt()) @ eigenvectors.transpose(1, 2)
    result = embeddings.clone()
    result[:, order[:whole]] = (centred @ zca / scale.sqrt()).transpose(0, 1).reshape(texts, whole)
    return result


class WhitenedRankingLoss(RankingLoss):
    """The ranking loss, mean over shuffles of the positives' channels."""

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        """Whiten anchors and positives over the batch and return the mean loss."""
        anchors, positives = (embedding.float() for embedding in embeddings)
        if len(anchors) < 2:
            return super().compute_loss_from_embeddings([anchors, positives], labels)
        both = torch.cat([anchors, positives])
        device = both.device
        own = whitened_in_groups(both, torch.randperm(both.shape[1], device=device))[: len(anchors)]
        losses = []
        for _ in range(SHUFFLES):
            other = whitened_in_groups(both, torch.randperm(both.shape[1], device=device))[len(anchors) :]
            losses.append(super().compute_loss_from_embeddings([own, other], labels))
        return torch.stack(losses).mean()


def build(workshop: Workshop, settings: Settings) -> Built:
    """Return the embedder trained on whitened views; the whitening itself is left behind, as published."""
    pairs = same_text_twice(workshop.passages)
    embedder, result = train_contrastive(workshop, ContrastiveSettings(**settings), pairs, loss=WhitenedRankingLoss)
    return finished(workshop, embedder, "WhitenedCSE", result.tokens)


PEERS = (Peer("WhitenedCSE", "contrastive", build, tuple(c.as_settings() for c in CANDIDATES), seeded=True),)
