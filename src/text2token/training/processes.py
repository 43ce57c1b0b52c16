"""Training in several processes, begun by torchrun or accelerate launch: the first does what is to be done once.

The others wait, and then find its files, as a resumed run would. They wait in a second group, over gloo: that of
the training gives up after minutes, because there silence means a dead process, and targets may take hours.
"""

import datetime
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import PartialState

from text2token.errors import UsageError

Value = TypeVar("Value")

LONGEST_WAIT = datetime.timedelta(days=30)
SHARDED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}  # set by accelerate launch


@dataclass(frozen=True)
class Processes:
    """The processes that train together, and which of them this is, counted from 0."""

    rank: int = 0
    count: int = 1
    waiting: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the one that does what is to be done once."""
        return self.rank == 0

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process go through the block while the others wait, then these."""
        if not self.first:
            self._meet()
        yield
        if self.first:
            self._meet()

    def from_first(self, value: Value) -> Value:
        """Return what the first process gave here; the value of the others does not count."""
        if self.count == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0, group=self.waiting)
        return values[0]

    def _meet(self) -> None:
        if self.count > 1:
            torch.distributed.barrier(group=self.waiting)


@functools.cache
def together() -> Processes:
    """Join the processes that this one was begun with, each on one device, and return them.

    Raises `UsageError` where accelerate is set to shard the model's weights: the first process, which alone
    evaluates and exports, would have a part of them and wait for the rest for ever.
    """
    for name, words in SHARDED.items():
        if os.environ.get(name, "false") == "true":
            raise UsageError(f"{words} shards the weights, which a run needs whole: leave it out of accelerate's settings")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    state = PartialState(cpu=not torch.cuda.is_available())
    waiting = torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
    return Processes(state.process_index, state.num_processes, waiting)
