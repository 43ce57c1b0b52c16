"""Texts of many requests, embedded together: one thread has the model, and the event loop never waits for it.

While a batch is embedded the next ones gather, so under load batches fill by themselves; only an idle server waits, some
milliseconds, for company. Requests take turns: a large one does not hold up the small ones behind it. A text
that the model fails on fails its request alone, and a request whose client has left is not worked on.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from text2token.model.backbone import Role
from text2token.serve.limits import Limits

TURN = 8  # texts of one request before it is another's turn
LONGEST_RETRY = 60  # seconds
Observe = Callable[[int, int, float], None]  # texts, tokens and seconds of a batch


class Overloaded(Exception):
    """The queue is full. `retry_after` is in how many seconds, as far as can be known, it will have been worked off."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"the server is busy: {waiting:,} texts are waiting. Try again in {retry_after} s")
        self.retry_after = retry_after


@dataclass(eq=False)
class _Request:
    """Texts that are answered together; their `vectors` come in the order of the texts."""

    texts: Sequence[str]
    tokens: Sequence[int]
    arrived: float
    role: Role | None = None
    taken: int = 0
    vectors: list[Tensor] = field(default_factory=list)
    answer: "Future[Tensor]" = field(default_factory=Future)

    def add(self, vectors: Tensor) -> None:
        self.vectors.append(vectors)
        if sum(map(len, self.vectors)) == len(self.texts) and self._claim():
            self.answer.set_result(torch.cat(self.vectors))

    def fail(self, error: Exception) -> None:
        if self._claim():
            self.answer.set_exception(error)

    def _claim(self) -> bool:
        """Return whether the answer is still wanted; from then on it cannot be cancelled."""
        return not self.answer.done() and self.answer.set_running_or_notify_cancel()


@dataclass(frozen=True)
class _Part:
    """Some of the texts of a request."""

    request: _Request
    texts: Sequence[str]
    tokens: int


class Batcher:
    """The only one who calls `embed`, texts → vectors of shape (texts, dimension); close it to end its thread.

    Texts that have a role in a search are embedded by themselves, with `role=` that one.
    """

    def __init__(self, embed: Callable[..., Tensor], limits: Limits, observe: Observe | None = None) -> None:
        self.waiting_texts = 0
        self._embed = embed
        self._limits = limits
        self._observe = observe
        self._waiting_tokens = 0
        self._seconds_per_token = 0.0
        self._requests: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="text2token-batcher", daemon=True)
        self._thread.start()

    def submit(self, texts: Sequence[str], tokens: Sequence[int], role: Role | None = None) -> "Future[Tensor]":
        """Return what will be the vectors of `texts`, shape (texts, dimension); `tokens` has the length of each.

        A cancelled future is not worked on any further. Raises `Overloaded` as `check_room` does.
        """
        request = _Request(texts, tokens, time.monotonic(), role)
        with self._changed:
            self.check_room(len(texts))
            self._requests.append(request)
            self._count(len(texts), sum(tokens))
            self._changed.notify()
        return request.answer

    def check_room(self, texts: int) -> None:
        """Raise `Overloaded` when there is no room for so many texts, or those waiting take longer than a request may."""
        seconds = self._waiting_tokens * self._seconds_per_token
        if self.waiting_texts + texts > self._limits.queue_texts or seconds > self._limits.seconds:
            raise Overloaded(self.waiting_texts, min(LONGEST_RETRY, max(1, math.ceil(seconds))))

    async def embed(self, texts: Sequence[str], tokens: Sequence[int], role: Role | None = None) -> Tensor:
        """Wait for what `submit` returns, shape (texts, dimension); when that is cancelled, the texts are dropped."""
        return await asyncio.wrap_future(self.submit(texts, tokens, role))

    def close(self) -> None:
        """Embed what is waiting and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while parts := self._next():
            self._answer(parts)

    def _next(self) -> list[_Part]:
        """Return the next batch, when it is full or has waited long enough; nothing when all is done."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._requests or self._closing)
                if not self._requests:
                    return []
                left = self._requests[0].arrived + self._limits.batch_wait - time.monotonic()
                self._changed.wait_for(lambda: self._is_full() or self._closing, max(0.0, left))
                if parts := self._taken():  # else all were cancelled
                    return parts

    def _is_full(self) -> bool:
        return self.waiting_texts >= self._limits.batch_texts or self._waiting_tokens >= self._limits.batch_tokens

    def _taken(self) -> list[_Part]:
        """Take a batch out of the queue, request by request in turns, at least one text."""
        parts: list[_Part] = []
        texts, tokens = self._limits.batch_texts, self._limits.batch_tokens  # that there is still room for
        while self._requests and texts > 0:
            request = self._requests.popleft()
            start, end = request.taken, request.taken
            if request.answer.done():
                self._count(start - len(request.texts), -sum(request.tokens[start:]))
                continue
            while end < min(len(request.texts), start + TURN, start + texts):
                if request.tokens[end] > tokens and (parts or end > start):
                    break
                tokens -= request.tokens[end]
                end += 1
            if end == start:
                self._requests.appendleft(request)
                break
            texts -= end - start
            request.taken = end
            part = _Part(request, request.texts[start:end], sum(request.tokens[start:end]))
            parts.append(part)
            self._count(start - end, -part.tokens)
            if end < len(request.texts):
                self._requests.append(request)
        return parts

    def _count(self, texts: int, tokens: int) -> None:
        self.waiting_texts += texts
        self._waiting_tokens += tokens

    def _answer(self, parts: Sequence[_Part]) -> None:
        if len(roles := {part.request.role for part in parts}) > 1:
            for one in roles:
                self._answer([part for part in parts if part.request.role == one])
            return
        started, (role,) = time.monotonic(), roles
        try:
            texts = [text for part in parts for text in part.texts]
            vectors = self._embed(texts, role=role) if role else self._embed(texts)
        except Exception as error:
            if len({part.request for part in parts}) == 1:
                parts[0].request.fail(error)
            else:
                for part in parts:
                    self._answer([part])
            return
        seconds, tokens = time.monotonic() - started, sum(part.tokens for part in parts)
        measured = seconds / max(1, tokens)
        self._seconds_per_token += (measured - self._seconds_per_token) / (4 if self._seconds_per_token else 1)
        if self._observe:
            self._observe(len(vectors), tokens, seconds)
        for part, of_part in zip(parts, torch.split(vectors, [len(part.texts) for part in parts]), strict=True):
            part.request.add(of_part)
