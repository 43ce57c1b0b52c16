"""Checkpoints that hold what training changes, not a copy of the model; a half-written one never counts."""

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

TRAINER_STATE = "trainer_state.json"
CHECKPOINTS_KEPT = 2  # the newest, and the one before it while the newest is being written


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, deleting what a killed run left half-written; None where there is none."""
    complete: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        try:  # the trainer writes its state last
            complete.append((json.loads((path / TRAINER_STATE).read_text(encoding="utf-8"))["global_step"], path))
        except (OSError, ValueError, KeyError):
            shutil.rmtree(path, ignore_errors=True)
    return max(complete)[1] if complete else None


def forget_old_checkpoints(folder: Path) -> None:
    """Delete all checkpoints but the two of the most steps.

    The trainer goes by the time of their files: where the clock is set back it deletes the newest (seen with
    transformers 5.24), and a killed run starts from long ago.
    """
    numbers = sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))
    for number in numbers[:-CHECKPOINTS_KEPT]:
        old = folder / f"checkpoint-{number}"
        (old / TRAINER_STATE).unlink(missing_ok=True)  # first, so that a half-deleted one does not count as complete
        shutil.rmtree(old, ignore_errors=True)


def trainable_weights(embedder: nn.Module) -> dict[str, Tensor]:
    """Return the weights that training changes, by name."""
    return {name: value.detach().contiguous() for name, value in embedder.named_parameters() if value.requires_grad}


def load_trainable(embedder: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put `weights`, from `trainable_weights`, into `embedder`, in place."""
    with torch.no_grad():
        for name, parameter in embedder.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
