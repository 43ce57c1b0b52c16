"""Which texts share a batch, and in which order batches are trained on: all of it is known before the first step.

Batches are fixed once and only their order is shuffled: the token loss compares no texts with each other, so who shares a
batch does not matter, and equal lengths waste no padding. A contrastive term does compare: texts then meet at random,
pairs together. Among negatives of equal length they learn less.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from text2token.errors import UsageError
from text2token.model.backbone import batches_of
from text2token.recipe import ScheduleSettings

TRAINING_COST = 3  # of a token, where embedding it is 1; in float32 on CPUs 2 to 3 was measured


@dataclass(frozen=True)
class Schedule:
    """Which batches a stage will see: `batches` of row numbers, `batch_tokens` beside them, and how many `steps`."""

    batches: list[NDArray[np.int64]]
    batch_tokens: NDArray[np.int64]
    steps: int
    seed: int
    accumulate: int
    processes: int = 1

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the order of the batches in one epoch, which several processes take in turn, each as many."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.batches))
        return order[: self.batches_an_epoch]

    @property
    def batches_an_epoch(self) -> int:
        """How many batches an epoch has: a remainder smaller than the number of processes is left out."""
        return len(self.batches) // self.processes * self.processes

    def steps_in_order(self) -> Iterator[list[int]]:
        """Yield the numbers of the batches of each optimiser step, of all processes, epoch after epoch, without end.

        As in the trainer, a step never straddles two epochs.
        """
        epoch, size = 0, self.accumulate * self.processes
        while True:
            order = self.order(epoch).tolist()
            for start in range(0, len(order), size):
                yield order[start : start + size]
            epoch += 1

    @property
    def tokens_to_see(self) -> int:
        """The number of tokens that all steps together process, padding left out."""
        return sum(int(self.batch_tokens[batches].sum()) for batches in islice(self.steps_in_order(), self.steps))

    @property
    def rows_to_see(self) -> NDArray[np.int64]:
        """The numbers of the rows that all steps together process, ascending, each once."""
        batches = {batch for step in islice(self.steps_in_order(), self.steps) for batch in step}
        return np.unique(np.concatenate([self.batches[batch] for batch in sorted(batches)]))


def plan(
    lengths: NDArray[np.int64],
    settings: ScheduleSettings,
    seed: int,
    *,
    documents: NDArray[np.int64] | None = None,
    by_length: bool = True,
    processes: int = 1,
) -> Schedule:
    """Group rows of similar length into batches within `tokens_per_batch` (and `texts_per_batch`), and count the steps.

    `lengths` has shape (rows,): tokens of each text as the model sees it. A row longer than the budget is alone in
    a batch. No batch holds more padding than the differences of neighbouring lengths. Without `by_length` rows meet at
    random, for losses that compare the texts of a batch; padding then counts towards the bound. A contrastive term is
    such a loss. `documents`, shape (rows,), has the document that each row was cut from: for that term two successive
    rows of one are a pair, which shares a batch. A step takes
    `accumulate` batches for each of `processes`, and `max_tokens` counts those of all. Raises `UsageError` where there are
    fewer batches than processes.
    """
    follows = np.zeros(len(lengths), dtype=bool)
    if settings.contrast and documents is not None:
        follows = _second_of_pairs(documents)
    first = np.random.default_rng(seed).permutation(np.flatnonzero(~follows))
    if by_length and not follows.any():
        first = first[np.argsort(lengths[first], kind="stable")]
    order = np.repeat(first, 1 + np.append(follows[1:], False)[first])
    second = np.append(False, order[1:] == order[:-1])
    order = order + second
    batches = batches_of(order, lengths, settings.tokens_per_batch, second, settings.texts_per_batch)
    tokens = np.array([int(lengths[batch].sum()) for batch in batches], dtype=np.int64)
    if len(batches) < processes:
        raise UsageError(
            f"{len(batches)} batches of {settings.tokens_per_batch} tokens are too few for {processes} processes"
        )
    schedule = Schedule(batches, tokens, 0, seed, settings.accumulate, processes)
    steps_an_epoch = -(-schedule.batches_an_epoch // (settings.accumulate * processes))
    schedule = replace(schedule, steps=settings.epochs * steps_an_epoch)
    if settings.max_tokens is None:
        return schedule
    seen = 0
    for step, numbers in enumerate(islice(schedule.steps_in_order(), schedule.steps), start=1):
        seen += int(tokens[numbers].sum())
        if seen >= settings.max_tokens:
            return replace(schedule, steps=step)
    return schedule


def _second_of_pairs(documents: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rows end a pair: every second one of the successive rows of a document."""
    rows = np.arange(len(documents))
    begins = np.append(True, documents[1:] != documents[:-1])
    ends: NDArray[np.bool_] = (rows - np.maximum.accumulate(np.where(begins, rows, 0))) % 2 == 1
    return ends
