"""The objective: the embedding, decoded through the head, must predict the target distribution."""

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


def in_batch_info_nce(
    embeddings: Float[Tensor, "batch dimension"],
    groups: Int[Tensor, " batch"],
    temperature: float,
    texts: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " matched"]:
    """InfoNCE in nats over the negatives of a batch (van den Oord et al. 2018), one figure for each row with a positive.

        -log ( sum over positives of exp(cos / temperature)  /  sum over positives and negatives of exp(cos / temperature) )

    Positives are the other rows of the same group, negatives the rows of other groups. `texts` has the same number for the
    same text: what reads the same in another group (a mail's footer, a licence) is no negative.
    """
    directions = nn.functional.normalize(embeddings.float())
    itself = torch.eye(len(groups), dtype=torch.bool, device=groups.device)
    positive = (groups[:, None] == groups[None]) & ~itself
    matched = positive.any(1)
    left_out = itself if texts is None else itself | ((texts[:, None] == texts[None]) & ~positive)
    similarities = (directions @ directions.T / temperature).masked_fill(left_out, -torch.inf)[matched]
    loss: Tensor = similarities.logsumexp(1) - similarities.masked_fill(~positive[matched], -torch.inf).logsumexp(1)
    return loss


class TokenTargetLoss(nn.Module):
    """KL between token targets and the centred embedding decoded through the frozen head, mean over the batch.

        h = pooled embedding (dimension)      z = head(h - centre) (vocabulary)

    With `contrast` a second loss has that share of the whole:

        (1 - contrast) · KL  +  contrast · InfoNCE(h - centre)

    Positives are the other passages of the same document in the batch. Where no text has any, the KL is the whole loss.

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

        The texts of the batch may come in several passes. Without `documents` among the labels there are no positives,
        without `texts` (the same number for the same text) all other rows are negatives.
        """
        embeddings = torch.cat([self.model(features)["sentence_embedding"] for features in sentence_features])
        divergences = self.divergences(embeddings, labels["token_ids"], labels["weights"])
        if not torch.isfinite(divergences).all():
            rows = labels["rows"][~torch.isfinite(divergences)].tolist()
            raise TrainingDiverged(
                f"the loss is not a number for rows {rows[:8]} of the targets. Lower the learning rate, or check these texts"
            )
        if not self.contrast:
            return divergences.mean()
        groups = labels.get("documents", labels["rows"])
        contrasts = in_batch_info_nce(embeddings.float() - self.centre, groups, CONTRAST_TEMPERATURE, labels.get("texts"))
        if not len(contrasts):
            return divergences.mean()
        return (1 - self.contrast) * divergences.mean() + self.contrast * contrasts.mean()

    def divergences(self, embeddings: Tensor, token_ids: Tensor, weights: Tensor) -> Tensor:
        """Return the KL of each row, shape (batch,)."""
        centred = embeddings.float() - self.centre
        if len(centred) <= self.rows_per_chunk:
            return self._divergences(centred, token_ids, weights)
        chunks = zip(*(torch.split(part, self.rows_per_chunk) for part in (centred, token_ids, weights)), strict=True)
        return torch.cat([checkpoint(self._divergences, *chunk, use_reentrant=False) for chunk in chunks])

    def _divergences(self, centred: Tensor, token_ids: Tensor, weights: Tensor) -> Tensor:
        return sparse_kl(self.head(centred), token_ids, weights)
