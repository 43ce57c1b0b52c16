"""The sparse KL is the KL."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from text2token.errors import TrainingDiverged
from text2token.model.head import LanguageModelHead
from text2token.training.objective import CONTRAST_TEMPERATURE, TokenTargetLoss, in_batch_info_nce, sparse_kl


def random_targets(seed: int, rows: int, vocabulary: int, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
    token_ids = torch.stack([torch.randperm(vocabulary, generator=generator)[:k] for _ in range(rows)])
    weights = torch.rand(rows, k, generator=generator, dtype=torch.float64) + 1e-3
    weights[:, k // 2 + 1 :] = 0  # padding
    return logits, token_ids, weights / weights.sum(-1, keepdim=True)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(3, 40))
def test_sparse_kl_equals_dense_kl_with_its_gradient(seed: int, rows: int, vocabulary: int) -> None:
    logits, token_ids, weights = random_targets(seed, rows, vocabulary, k=3)
    dense = torch.zeros_like(logits).scatter_add_(-1, token_ids, weights)
    sparse_logits, dense_logits = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    divergence = sparse_kl(sparse_logits, token_ids, weights)
    reference = torch.nn.functional.kl_div(dense_logits.log_softmax(-1), dense, reduction="none").sum(-1)
    assert torch.allclose(divergence, reference, atol=1e-6, rtol=0)
    assert (divergence >= -1e-9).all()
    divergence.sum().backward()
    reference.sum().backward()
    assert torch.allclose(sparse_logits.grad, dense_logits.grad, atol=1e-6, rtol=0)  # type: ignore[arg-type]


def test_a_perfect_prediction_costs_nothing() -> None:
    weights = torch.tensor([[0.7, 0.3]], dtype=torch.float64)
    logits = torch.full((1, 6), -1e4, dtype=torch.float64)
    logits[0, [2, 4]] = weights[0].log()
    assert sparse_kl(logits, torch.tensor([[2, 4]]), weights).item() == pytest.approx(0, abs=1e-9)


class FixedEmbedder(torch.nn.Module):
    def __init__(self, embeddings: torch.Tensor) -> None:
        super().__init__()
        self.embeddings = torch.nn.Parameter(embeddings)

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sentence_embedding": self.embeddings}


def contrastive_losses(documents: list[int] | None = None) -> list[float]:
    """The losses of six texts at contrast 0, 1 and a quarter."""
    torch.manual_seed(0)
    embeddings, head, centre = torch.randn(6, 8), LanguageModelHead(torch.randn(30, 8)), torch.randn(8)
    _, token_ids, weights = random_targets(1, 6, 30, 5)
    labels = {"token_ids": token_ids, "weights": weights.float(), "rows": torch.arange(6)}
    labels |= {} if documents is None else {"documents": torch.tensor(documents)}
    return [
        TokenTargetLoss(FixedEmbedder(embeddings), head, centre, contrast=share)([{}], labels).item()  # type: ignore[arg-type]
        for share in (0.0, 1.0, 0.25)
    ]


def missed(embeddings: torch.Tensor, own: dict[int, list[int]]) -> float:
    """The contrastive loss, written as its definition says it."""
    total = 0.0
    for row, others in own.items():
        weight = [
            0.0
            if other == row
            else math.exp(torch.cosine_similarity(embeddings[row], embeddings[other], dim=0) / CONTRAST_TEMPERATURE)
            for other in range(len(embeddings))
        ]
        total -= math.log(sum(weight[other] for other in others) / sum(weight))
    return total / len(own)


def centred() -> torch.Tensor:
    torch.manual_seed(0)
    embeddings, _, centre = torch.randn(6, 8), torch.randn(30, 8), torch.randn(8)
    return (embeddings - centre).double()


def test_passages_of_a_document_must_find_each_other() -> None:
    without, alone, beside = contrastive_losses([4, 4, 7, 9, 9, 9])
    own = {0: [1], 1: [0], 3: [4, 5], 4: [3, 5], 5: [3, 4]}  # text 2 only stands among the others
    assert alone == pytest.approx(missed(centred(), own), abs=1e-5)
    assert beside == pytest.approx(0.75 * without + 0.25 * alone, abs=1e-5)


def test_a_batch_in_which_nothing_belongs_together_is_left_to_the_tokens() -> None:
    assert len({*contrastive_losses([1, 2, 3, 4, 5, 6]), *contrastive_losses(None)}) == 1


def test_what_is_nearest_to_its_own_has_nothing_to_learn() -> None:
    texts = torch.eye(4).repeat(2, 1)
    assert in_batch_info_nce(texts, torch.arange(4).repeat(2), 0.05).max() < 1e-3
    assert in_batch_info_nce(texts, torch.arange(8) // 2, 0.05).min() > 1


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9), st.integers(0, 100))
@settings(deadline=None)
def test_equal_texts_of_other_documents_are_nothing_to_be_told_from(passages: list[tuple[int, int]], seed: int) -> None:
    """What a passage loses is what it would lose in a batch without the passages of other documents that read the same."""
    groups, texts = torch.tensor(passages).T
    embeddings = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))[texts]
    expected = []
    for row, (group, text) in enumerate(passages):
        others = [i for i, (g, t) in enumerate(passages) if i != row and (g == group or t != text)]
        batch = torch.tensor([row, *others])
        if any(passages[i][0] == group for i in others):
            without = torch.arange(len(batch)) + 100  # every other row a text of its own
            expected.append(in_batch_info_nce(embeddings[batch], groups[batch], 0.1, without)[0].item())
    assert in_batch_info_nce(embeddings, groups, 0.1, texts).tolist() == pytest.approx(expected, abs=1e-4)


def test_a_footer_under_many_documents_costs_none_of_them() -> None:
    """Without the mask a copy at cosine 1 outweighs the own passage whatever the model does."""
    footer = torch.nn.functional.normalize(torch.randn(1, 8), dim=1)
    bodies = torch.nn.functional.normalize(torch.randn(4, 8) + 3 * footer, dim=1)
    embeddings = torch.stack([part for body in bodies for part in (body, footer[0])])
    labels = {
        "token_ids": torch.zeros(8, 1, dtype=torch.long),
        "weights": torch.ones(8, 1),
        "rows": torch.arange(8),
        "documents": torch.arange(8) // 2,
    }
    texts = torch.tensor([0, 9, 1, 9, 2, 9, 3, 9])

    def loss(**beside: torch.Tensor) -> float:
        modules = FixedEmbedder(embeddings), LanguageModelHead(torch.randn(5, 8))
        return TokenTargetLoss(*modules, contrast=1.0)([{}], labels | beside).item()  # type: ignore[arg-type]

    assert loss(texts=texts) < loss() - 0.1
    assert loss(texts=torch.arange(8)) == pytest.approx(loss())


def loss_and_gradient(rows_per_chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    embedder = FixedEmbedder(torch.randn(7, 8))
    head = LanguageModelHead(torch.randn(30, 8))
    _, token_ids, weights = random_targets(1, 7, 30, 5)
    centre = torch.randn(8)
    loss = TokenTargetLoss(embedder, head, centre, contrast=0, rows_per_chunk=rows_per_chunk)  # type: ignore[arg-type]
    value = loss([{}], {"token_ids": token_ids, "weights": weights.float(), "rows": torch.arange(7)})
    value.backward()
    assert embedder.embeddings.grad is not None
    return value.detach(), embedder.embeddings.grad


def test_chunks_of_rows_change_neither_loss_nor_gradient() -> None:
    whole, chunked = loss_and_gradient(100), loss_and_gradient(2)
    assert torch.allclose(whole[0], chunked[0])
    assert torch.allclose(whole[1], chunked[1], atol=1e-7)


def test_head_is_frozen_and_centre_is_no_parameter() -> None:
    loss = TokenTargetLoss(FixedEmbedder(torch.ones(1, 4)), LanguageModelHead(torch.ones(5, 4)), torch.ones(4), contrast=0)  # type: ignore[arg-type]
    assert [name for name, _ in loss.named_parameters()] == ["model.embeddings"]


def test_infinite_loss_names_the_rows() -> None:
    embedder = FixedEmbedder(torch.tensor([[1.0, 1.0], [float("nan"), 1.0]]))
    loss = TokenTargetLoss(embedder, LanguageModelHead(torch.ones(3, 2)), contrast=0)  # type: ignore[arg-type]
    labels = {"token_ids": torch.zeros(2, 1, dtype=torch.long), "weights": torch.ones(2, 1), "rows": torch.tensor([5, 42])}
    with pytest.raises(TrainingDiverged, match=r"rows \[42\]"):
        loss([{}], labels)
