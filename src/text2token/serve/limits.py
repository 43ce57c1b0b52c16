"""What a server takes on, and what it turns away."""

import math
from dataclasses import asdict, dataclass, field

from text2token.backbone import tokens_per_pass
from text2token.errors import RecipeError


@dataclass(frozen=True)
class Limits:
    """Sizes of requests, of batches, of the queue before them.

    What cannot be stopped once it has begun is bounded before: the texts of a request, their characters, the values to
    filter by, the hits and the words.

    A batch is what the model embeds at once, from as many requests as there are: it goes when it is full, or when its first
    text has waited `batch_wait` seconds. `batch_tokens` is one pass of the model, by default what suits this machine.
    `queue_texts` may wait in all, and `requests` be at work, more are turned away: the first is for slow models, the second
    for fast ones, where the requests themselves are the work. A request has `seconds` for everything, its headers too.
    """

    body_bytes: int = 4 << 20
    texts: int = 1024
    characters: int = 100_000
    filters: int = 100
    hits: int = 100
    words: int = 64
    seconds: float = 60.0
    batch_texts: int = 64
    batch_tokens: int = field(default_factory=tokens_per_pass)
    batch_wait: float = 0.003
    queue_texts: int = 2048
    requests: int = 128
    connections: int = 1024

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not math.isfinite(value) or value < 0 or (value == 0 and name != "batch_wait"):
                raise RecipeError(f"{name} is {value}; it must be a number above 0")
        if self.queue_texts < self.texts:
            raise RecipeError(
                f"queue_texts is {self.queue_texts}, less than the {self.texts} texts that one request may have"
            )
