"""What training changed is taken apart into directions, and put together it is what was there."""

import pytest
import torch
from conftest import TEXTS

from text2token.evaluation.change import RANKS, change_of
from text2token.evaluation.history import word_scores
from text2token.lens.metrics import alignment_of_scores
from text2token.lens.reader import WordSplitter
from text2token.model.backbone import embed, load_embedder, room_for_text, tokenizer_of
from text2token.model.head import LanguageModelHead, load_head
from text2token.recipe import BackboneSettings

Reading = tuple[LanguageModelHead, WordSplitter, int, torch.Tensor]


@pytest.fixture
def reading(tiny: BackboneSettings) -> Reading:
    embedder = load_embedder(tiny)
    tokenizer = tokenizer_of(embedder)
    before = embed(embedder, TEXTS)
    return load_head(embedder, tiny.name), WordSplitter(tokenizer), room_for_text(tokenizer), before


def test_no_step_is_the_text_before_and_all_of_them_the_text_after(reading: Reading) -> None:
    head, splitter, room, before = reading
    after = before + torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    centre = before.mean(0)
    change = change_of(before, after, centre, TEXTS, head, splitter, room)
    assert change is not None
    words = splitter.words_in(TEXTS, room)
    for part, embeddings in ((change.parts[0], before), (change.parts[-1], after)):
        lexicon, scores = word_scores(embeddings - centre, head, splitter)
        said = alignment_of_scores(scores, lexicon, words)
        assert (part.hit_at_1, part.precision_at_10, part.gar) == (said.hit_at_1, said.precision_at_10, said.gar)
    shares = [part.share for part in change.parts]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, pytest.approx(100))
    assert [part.directions for part in change.parts[:-1]] == [rank for rank in RANKS if rank < len(TEXTS)]


def test_directions_are_those_of_the_untrained_embeddings_and_the_first_is_about_their_mean(reading: Reading) -> None:
    head, splitter, room, before = reading
    mean = torch.nn.functional.normalize(before.mean(0), dim=0)
    change = change_of(before, before - 5 * mean, torch.zeros(before.shape[1]), TEXTS, head, splitter, room)
    assert change is not None
    directions = torch.linalg.svd(before.double()).Vh
    expected = (directions.float() @ mean).square()
    assert [direction.share for direction in change.directions] == pytest.approx((100 * expected[:4]).tolist(), abs=0.1)
    first = change.directions[0]
    assert first.share > 90
    assert first.before == pytest.approx(float((before @ directions[0].float()).mean().abs()), rel=1e-4)
    assert first.before - first.after == pytest.approx(5 * float(expected[0]) ** 0.5, rel=1e-3)


def test_a_direction_is_named_by_the_word_that_it_leads_to(reading: Reading) -> None:
    head, splitter, room, before = reading
    towards = torch.nn.functional.normalize(head.weight[splitter.word_of.index("girl")], dim=0)
    strength = 100 * torch.tensor([float("girl" in words) for words in splitter.words_in(TEXTS, room)])
    pushed = before + torch.outer(strength, towards)  # so its first direction is that of the word
    change = change_of(pushed, pushed + torch.outer(strength, towards), before.mean(0), TEXTS, head, splitter, room)
    assert change is not None
    first = change.directions[0]
    assert first.share == pytest.approx(100, abs=1)
    assert first.one_way[0] == "girl"
    assert first.after == pytest.approx(2 * first.before, rel=0.05)


def test_where_nothing_changed_there_is_nothing_to_take_apart(reading: Reading) -> None:
    head, splitter, room, before = reading
    assert change_of(before, before.clone(), before.mean(0), TEXTS, head, splitter, room) is None
