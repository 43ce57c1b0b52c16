"""What training changed is taken apart into directions, and put together it is what was there."""

from collections.abc import Sequence

import pytest
import torch
from conftest import TEXTS

from text2token.evaluation.alignment import alignment_of_scores
from text2token.evaluation.change import RANKS, change_of
from text2token.model.backbone import embed
from text2token.model.bundle import Backbone, load_backbone
from text2token.recipe import BackboneSettings

Reading = tuple[Backbone, Sequence[frozenset[str]], torch.Tensor]


@pytest.fixture
def reading(tiny: BackboneSettings) -> Reading:
    backbone = load_backbone(tiny)
    return backbone, backbone.splitter.words_in(TEXTS, backbone.room), embed(backbone.embedder, TEXTS)


def test_no_step_is_the_text_before_and_all_of_them_the_text_after(reading: Reading) -> None:
    backbone, words_of, before = reading
    words, head = backbone.splitter.words, backbone.head
    after = before + torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    centre = before.mean(0)
    change = change_of(before, after, centre, words_of, head, words)
    assert change is not None
    for part, embeddings in ((change.parts[0], before), (change.parts[-1], after)):
        decoded = alignment_of_scores(words.probabilities(head(embeddings - centre)), words.lexicon, words_of)
        assert (part.hit_at_1, part.precision_at_10, part.gar) == (decoded.hit_at_1, decoded.precision_at_10, decoded.gar)
    shares = [part.share for part in change.parts]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, pytest.approx(100))
    assert [part.directions for part in change.parts[:-1]] == [rank for rank in RANKS if rank < len(TEXTS)]


def test_directions_are_those_of_the_untrained_embeddings_and_the_first_is_about_their_mean(reading: Reading) -> None:
    backbone, words_of, before = reading
    mean = torch.nn.functional.normalize(before.mean(0), dim=0)
    centre = torch.zeros(before.shape[1])
    change = change_of(before, before - 5 * mean, centre, words_of, backbone.head, backbone.splitter.words)
    assert change is not None
    directions = torch.linalg.svd(before.double()).Vh
    expected = (directions.float() @ mean).square()
    assert [direction.share for direction in change.directions] == pytest.approx((100 * expected[:4]).tolist(), abs=0.1)
    first = change.directions[0]
    assert first.share > 90
    assert first.before == pytest.approx(float((before @ directions[0].float()).mean().abs()), rel=1e-4)
    assert first.before - first.after == pytest.approx(5 * float(expected[0]) ** 0.5, rel=1e-3)


def test_a_direction_is_named_by_the_word_that_it_leads_to(reading: Reading) -> None:
    backbone, words_of, before = reading
    words, head = backbone.splitter.words, backbone.head
    rows = words.tokens[words.starts[words.lexicon.index("girl")] :][:1]
    towards = torch.nn.functional.normalize(head.weight[rows].sum(0), dim=0)
    strength = 100 * torch.tensor([float("girl" in there) for there in words_of])
    pushed = before + torch.outer(strength, towards)  # so its first direction is that of the word
    change = change_of(pushed, pushed + torch.outer(strength, towards), before.mean(0), words_of, head, words)
    assert change is not None
    first = change.directions[0]
    assert first.share == pytest.approx(100, abs=1)
    assert first.one_way[0] == "girl"
    assert first.after == pytest.approx(2 * first.before, rel=0.05)


def test_where_nothing_changed_there_is_nothing_to_take_apart(reading: Reading) -> None:
    backbone, words_of, before = reading
    assert change_of(before, before.clone(), before.mean(0), words_of, backbone.head, backbone.splitter.words) is None
