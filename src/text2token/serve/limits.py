"""What a server takes on, and what it turns away."""

from dataclasses import asdict, dataclass

from text2token.backbone import TOKENS_PER_BATCH_CPU
from text2token.errors import RecipeError


@dataclass(frozen=True)
class Limits:
    """Sizes of requests, of batches, of the queue before them.

    A batch is what the model embeds at once, from as many requests as there are: it goes when it is full, or when its first
    text has waited `batch_wait` seconds. `queue_texts` may wait in all, and `requests` be at work, more are turned away: the
    first is for slow models, the second for fast ones, where the requests themselves are the work. A request has `seconds`
    for everything. `batch_tokens` is one pass of the model on a CPU; a GPU can do with fifty times as many.
    """

    body_bytes: int = 4 << 20
    texts: int = 1024
    characters: int = 100_000
    hits: int = 100
    words: int = 64
    seconds: float = 60.0
    batch_texts: int = 64
    batch_tokens: int = TOKENS_PER_BATCH_CPU
    batch_wait: float = 0.003
    queue_texts: int = 2048
    requests: int = 128
    connections: int = 1024

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0 or (value == 0 and name != "batch_wait"):
                raise RecipeError(f"{name} is {value}; it must be more than 0")
        if self.queue_texts < self.texts:
            raise RecipeError(
                f"queue_texts is {self.queue_texts}, less than the {self.texts} texts that one request may have"
            )
