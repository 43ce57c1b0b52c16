"""Which words make two texts similar: an exact decomposition of their cosine.

    a · b  =  common  +  the words' shares  +  rest

`common` is the part along the mean embedding of the corpus, which all texts have in common. The words are then chosen
greedily: always the one that accounts for most of what remains of both texts; its share is what it adds:

    u₁, u₂, …   the words' reading directions, each made orthogonal to the mean and to those before it, of unit length
    share(i) = (a · uᵢ)(b · uᵢ),   and their sum is  aᵀP b,  P the projection onto the span of the words' directions

The sum is exact by construction, whatever the directions are. Its price: of several similar words the first gets most of
their share. A word counts only where both texts point its way, so no share is negative; the rest can be.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

from torch import Tensor
from torch.nn.functional import normalize

DISTINCT = 0.25  # of a direction's squared length must be new, else the word repeats those before it


class Contribution(NamedTuple):
    """A word and its share of a cosine, as points of the cosine."""

    word: str
    share: float


@dataclass(frozen=True)
class Contributions(Sequence[Contribution]):
    """The words of a pair, largest share first; `cosine` = `common` + `explained` + `rest`."""

    cosine: float
    common: float
    words: tuple[Contribution, ...]

    @property
    def explained(self) -> float:
        """The sum of the words' shares."""
        return sum(share for _, share in self.words)

    @property
    def rest(self) -> float:
        """What neither the words nor the mean account for; it may be negative."""
        return self.cosine - self.common - self.explained

    @overload
    def __getitem__(self, index: int) -> Contribution: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Contribution, ...]: ...
    def __getitem__(self, index: int | slice) -> Contribution | tuple[Contribution, ...]:
        return self.words[index]

    def __len__(self) -> int:
        return len(self.words)

    def __iter__(self) -> Iterator[Contribution]:
        return iter(self.words)


def decompose(a: Tensor, b: Tensor, mean: Tensor, words: Sequence[str], directions: Tensor, k: int) -> Contributions:
    """Return the cosine of `a` and `b`, shape (dimension,), as shares of at most `k` of `words`.

    `directions` has shape (words, dimension), of any length; `mean` may be zero, and then nothing is common.
    """
    a, b = normalize(a.double(), dim=0), normalize(b.double(), dim=0)
    cosine = float(a @ b)
    shared = normalize(mean.double(), dim=0)
    common = float((a @ shared) * (b @ shared))
    a, b = a - (a @ shared) * shared, b - (b @ shared) * shared
    left = normalize(directions.double())
    left = left - (left @ shared)[:, None] * shared
    found: list[Contribution] = []
    for _ in range(min(k, len(words))):
        lengths = left.square().sum(1)
        of_a, of_b = left @ a, left @ b
        gains = of_a * of_b / lengths.clamp(min=DISTINCT)
        gains[(lengths < DISTINCT) | (of_a <= 0)] = 0  # both point away from it: no explanation of similarity
        best = int(gains.argmax())
        if gains[best] <= 0:
            break
        found.append(Contribution(words[best], float(gains[best])))
        direction = left[best] / lengths[best].sqrt()
        left = left - (left @ direction)[:, None] * direction
        a, b = a - (a @ direction) * direction, b - (b @ direction) * direction
    return Contributions(cosine, common, tuple(sorted(found, key=lambda pair: -pair.share)))
