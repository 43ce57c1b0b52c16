"""What a server takes on, and what it turns away."""

from dataclasses import field

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from text2token.errors import UsageError
from text2token.model.backbone import tokens_per_pass
from text2token.settings import checked


@checked
class Limits:
    """Sizes of requests, of batches, of the queue before them.

    What cannot be stopped once it has begun is bounded before: texts, characters, values to filter by, hits and words. A
    batch is embedded at once, from as many requests as there are: when it is full, or its first text has waited.
    """

    body_bytes: PositiveInt = 4 << 20
    """Bytes of a request."""
    texts: PositiveInt = 1024
    """Texts of a request."""
    characters: PositiveInt = 100_000
    """Characters of a text."""
    filters: PositiveInt = 100
    """Values of a search's filters, of all fields together."""
    hits: PositiveInt = 100
    """The largest `k` of a search."""
    words: PositiveInt = 64
    """The largest `k` of the lens."""
    seconds: PositiveFloat = 60.0
    """For a request, from its first byte; a connection that sends no whole headers is closed after it."""
    batch_texts: PositiveInt = 64
    """Texts of a batch."""
    batch_tokens: PositiveInt = field(default_factory=tokens_per_pass)
    """Tokens of a batch; by default what this machine embeds in one pass, which a GPU does with many more."""
    batch_wait: NonNegativeFloat = 0.003
    """Seconds that an idle server waits for a batch to grow."""
    queue_texts: PositiveInt = 2048
    """Texts that may wait to be embedded; more are turned away, as is what would wait longer than `seconds`."""
    requests: PositiveInt = 128
    """Requests at work; more are turned away."""
    connections: PositiveInt = 1024
    """Open connections, idle ones too."""

    def __post_init__(self) -> None:
        if self.queue_texts < self.texts:
            raise UsageError(
                f"queue_texts is {self.queue_texts}, less than the {self.texts} texts that one request may have"
            )
