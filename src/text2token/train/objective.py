"""The objective: the embedding, decoded through the head, must predict the target distribution.

The KL objective is the paper's; sparse targets and centring before the head are ours.
"""

import torch
from jaxtyping import Float, Int
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from text2token.errors import TrainingDiverged
from text2token.model.head import LanguageModelHead

CONTRAST_TEMPERATURE = 0.05  # divides cosines


def sparse_kl(
    logits: Float[Tensor, "batch vocabulary"],
    token_ids: Int[Tensor, "batch k"],
    weights: Float[Tensor, "batch k"],
) -> Float[Tensor, " batch"]:
    """KL(target || model) of each row, in nats, where the target names only k tokens of the vocabulary.

        sum q log q  -  sum q z  +  logsumexp(z)

    `weights` sum to 1 in each row and name a token at most once. Padding is a token of weight 0, so it adds nothing.
    """
    negative_entropy = torch.special.xlogy(weights, weights).sum(-1)
    expected_logit = (weights * logits.gather(-1, token_ids)).sum(-1)
    divergence: Tensor = negative_entropy - expected_logit + logits.logsumexp(-1)
    return divergence


def own_among_others(
    embeddings: Float[Tensor, "batch dimension"],
    groups: Int[Tensor, " batch"],
    temperature: float,
    texts: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " matched"]:
    """InfoNCE in nats (van den Oord et al. 2018): each embedding must tell those of its own group from the rest.

        -log ( sum over others of its group exp(cos / temperature)  /  sum over all others exp(cos / temperature) )

    Embeddings that are alone in their group are only what the rest is told from; the result has one figure for each of
    the others. `texts` has the same number for the same text: what reads the same in another group (a mail's footer, a
    licence) is not among what a text is told from.
    """
    directions = nn.functional.normalize(embeddings.float())
    itself = torch.eye(len(groups), dtype=torch.bool, device=groups.device)
    own = (groups[:, None] == groups[None]) & ~itself
    matched = own.any(1)
    left_out = itself if texts is None else itself | ((texts[:, None] == texts[None]) & ~own)
    likeness = (directions @ directions.T / temperature).masked_fill(left_out, -torch.inf)[matched]
    missed: Tensor = likeness.logsumexp(1) - likeness.masked_fill(~own[matched], -torch.inf).logsumexp(1)
    return missed


class TokenTargetLoss(nn.Module):
    """KL between token targets and the centred embedding decoded through the frozen head, mean over the batch.

        h = pooled embedding (dimension)      z = head(h - centre) (vocabulary)

    With `contrast` a second loss has that share of the whole:

        (1 - contrast) · KL  +  contrast · own_among_others(h - centre)

    A text's own are the passages of the same document in the batch. A batch in which no text has its own is left to the KL
    alone.

    `h` is taken before any normalisation to unit length, after which the softmax would be nearly flat. `centre` has
    shape (dimension,); it takes the prior of function words out of the logits. At most
    `rows_per_chunk` rows of logits exist at a time, recomputed in the backward pass.
    """

    centre: Tensor

    def __init__(
        self,
        model: SentenceTransformer,
        head: LanguageModelHead,
        centre: Tensor | None = None,
        *,
        contrast: float,
        rows_per_chunk: int = 256,
    ) -> None:
        super().__init__()
        self.model = model
        self.head = head
        dimension = head.weight.shape[1]
        self.register_buffer("centre", torch.zeros(dimension) if centre is None else centre.float(), persistent=False)
        self.contrast = contrast
        self.rows_per_chunk = rows_per_chunk

    def forward(self, sentence_features: list[dict[str, Tensor]], labels: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch; `labels` holds `token_ids`, `weights` and `rows` as the collator made them.

        The texts of the batch may come in several passes. Without `documents` among the labels no two belong together,
        without `texts` (the same number for the same text) no two read the same.
        """
        embeddings = torch.cat([self.model(features)["sentence_embedding"] for features in sentence_features])
        divergences = self.divergences(embeddings, labels["token_ids"], labels["weights"])
        if not torch.isfinite(divergences).all():
            rows = labels["rows"][~torch.isfinite(divergences)].tolist()
            raise TrainingDiverged(
                f"the loss is not a number for rows {rows[:8]} of the targets. "
                "Lower the learning rate, or look at these texts"
            )
        missed = self._missed(embeddings, labels) if self.contrast else embeddings.new_empty(0)
        if not len(missed):
            return divergences.mean()
        return (1 - self.contrast) * divergences.mean() + self.contrast * missed.mean()

    def _missed(self, embeddings: Tensor, labels: dict[str, Tensor]) -> Tensor:
        """Return the contrastive loss of each text that has its own in the batch."""
        groups = labels.get("documents", labels["rows"])
        return own_among_others(embeddings.float() - self.centre, groups, CONTRAST_TEMPERATURE, labels.get("texts"))

    def divergences(self, embeddings: Tensor, token_ids: Tensor, weights: Tensor) -> Tensor:
        """Return the KL of each row, shape (batch,)."""
        centred = embeddings.float() - self.centre
        if len(centred) <= self.rows_per_chunk:
            return self._divergences(centred, token_ids, weights)
        chunks = zip(*(torch.split(part, self.rows_per_chunk) for part in (centred, token_ids, weights)), strict=True)
        return torch.cat([checkpoint(self._divergences, *chunk, use_reentrant=False) for chunk in chunks])

    def _divergences(self, centred: Tensor, token_ids: Tensor, weights: Tensor) -> Tensor:
        return sparse_kl(self.head(centred), token_ids, weights)
