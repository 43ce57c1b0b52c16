"""What a server takes on, and what it turns away."""

from dataclasses import field

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from text2token.errors import UsageError
from text2token.model.backbone import tokens_per_pass
from text2token.settings import checked


@checked
class Limits:
    """Sizes of requests, of batches, of the queue before them.

    What cannot be stopped once it has begun is bounded before: the texts of a request, their characters, the values to
    filter by, the hits and the words.

    A batch is what the model embeds at once, from as many requests as there are: it goes when it is full, or when its first
    text has waited `batch_wait` seconds. `batch_tokens` is one pass of the model, by default what suits this machine.
    `queue_texts` may wait in all, and `requests` be at work, more are turned away: the first is for slow models, the second
    for fast ones, where the requests themselves are the work. A request has `seconds` for everything, its headers too.
    """

    body_bytes: PositiveInt = 4 << 20
    texts: PositiveInt = 1024
    characters: PositiveInt = 100_000
    filters: PositiveInt = 100
    hits: PositiveInt = 100
    words: PositiveInt = 64
    seconds: PositiveFloat = 60.0
    batch_texts: PositiveInt = 64
    batch_tokens: PositiveInt = field(default_factory=tokens_per_pass)
    batch_wait: NonNegativeFloat = 0.003
    queue_texts: PositiveInt = 2048
    requests: PositiveInt = 128
    connections: PositiveInt = 1024

    def __post_init__(self) -> None:
        if self.queue_texts < self.texts:
            raise UsageError(
                f"queue_texts is {self.queue_texts}, less than the {self.texts} texts that one request may have"
            )
