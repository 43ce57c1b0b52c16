"""One training stage on the stock SentenceTransformerTrainer: targets in, an adapted embedder out.

What is added to it: batches by a schedule, targets beside texts, and checkpoints that hold only what changes.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from text2token.errors import OutputError
from text2token.files import writing
from text2token.model.backbone import token_lengths, tokenizer_of
from text2token.progress import Progress
from text2token.recipe import StageSettings
from text2token.training.checkpoints import forget_old_checkpoints, last_checkpoint, load_trainable, trainable_weights
from text2token.training.collate import TargetCollator, pass_cost
from text2token.training.processes import together
from text2token.training.schedule import Schedule

TRAINABLE_WEIGHTS = "trainable.safetensors"


@dataclass(frozen=True)
class StageResult:
    """What a stage did: optimiser steps, tokens and texts processed, wall time, first and last logged loss."""

    steps: int
    tokens: int
    texts: int
    seconds: float
    first_loss: float
    last_loss: float


def one_worker() -> dict[str, Any]:
    """Return the trainer's settings for a process that makes the batches, where there is a GPU and processes can be forked.

    Other ways to start one (that of Windows, and the default from Python 3.14 on) would send it the whole model.
    """
    if not torch.cuda.is_available() or "fork" not in multiprocessing.get_all_start_methods():
        return {"dataloader_num_workers": 0}
    return {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "fork"}


def on_one_device(arguments: TrainingArguments) -> None:
    """Keep the trainer from wrapping the model in `nn.DataParallel` where it sees several GPUs and there is one process.

    The schedule counts a process as one device. Several are used with torchrun (docs/scale.md).
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # as the trainer itself does where a model is spread over GPUs


def text_lengths(embedder: SentenceTransformer, rows: Dataset, column: str = "text") -> NDArray[np.int64]:
    """Return how many tokens the model sees of each text, prompt included and truncated; shape (rows,)."""
    return token_lengths(tokenizer_of(embedder), (batch[column] for batch in rows.iter(2048)))


def train_stage(
    embedder: SentenceTransformer,
    loss: nn.Module,
    rows: Dataset,
    schedule: Schedule,
    settings: StageSettings,
    folder: Path,
    *,
    collator: SentenceTransformerDataCollator | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> StageResult:
    """Train the weights of `embedder` that require gradients on `rows` by `schedule` (from `plan`), in place.

    `rows` are targets for `TokenTargetLoss`, unless another `collator` prepares them for another `loss`. `folder` takes
    checkpoints and TensorBoard logs. With `resume`, training resumes from the last complete checkpoint there, to the same
    weights as if it had never stopped; without, an old one is an `OutputError`. Several processes
    (`processes.together`) share every step. `progress` is called with the number of tokens after every step; `callbacks`
    are the trainer's. Raises `TrainingDiverged` when the loss is not finite.
    """
    with together().first_alone():
        checkpoint = last_checkpoint(folder)
    if checkpoint and not resume:
        raise OutputError(f"{folder}: holds checkpoints of an earlier run. Resume it (resume=True), or delete the folder")
    counter = _TokenCounter(schedule, progress)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=schedule.steps,
        learning_rate=settings.learning_rate,
        warmup_steps=round(settings.warmup * schedule.steps),  # its first step has rate 0: none for a handful of steps
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_grad_norm=1.0,
        gradient_accumulation_steps=schedule.accumulate,
        batch_sampler=lambda dataset, **_: ScheduledBatches(dataset, schedule),
        seed=schedule.seed,
        save_steps=settings.steps_per_checkpoint,
        logging_steps=steps_per_log(schedule.steps, settings.steps_per_checkpoint),
        logging_nan_inf_filter=False,
        report_to=["tensorboard"],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        # making a batch takes a processor as long as a GPU takes to train a small model on it
        **one_worker(),
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        dataloader_drop_last=together().count > 1,  # the schedule does so already; else the library would warn
    )
    on_one_device(arguments)
    trainer = StageTrainer(
        model=embedder,
        args=arguments,
        train_dataset=rows if collator else rows.add_column("row", np.arange(len(rows))),
        loss=loss,
        data_collator=collator
        or TargetCollator(embedder.preprocess, pass_cost=pass_cost(next(embedder.parameters()).dtype)),
        callbacks=[counter, *callbacks],
    )
    trainer.remove_callback(_callback_named(trainer, "PrinterCallback"))
    with writing(folder):
        output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    embedder.eval()
    return StageResult(
        steps=trainer.state.global_step,
        tokens=counter.tokens,
        texts=counter.texts,
        seconds=round(output.metrics["train_runtime"], 1),
        first_loss=round(losses[0], 4),
        last_loss=round(losses[-1], 4),
    )


def steps_per_log(steps: int, steps_per_checkpoint: int) -> int:
    """Return every how many steps the loss is logged: up to ten, at least five times in `steps`, and at every checkpoint.

    A logged loss is the mean since the last log. A resumed run knows none from before its checkpoint, so where a checkpoint
    falls between two logs the next one is another than without the interruption.
    """
    at_most = max(1, min(10, steps // 5))
    return max(number for number in range(1, at_most + 1) if steps_per_checkpoint % number == 0)


class ScheduledBatches(DefaultBatchSampler):
    """Hands the trainer the schedule's batches, in a new order every epoch (`set_epoch` is the trainer's).

    accelerate shares the batches out among processes. It drops those of another size than `batch_size`, and none only where
    that is None.
    """

    batch_size: int | None  # type: ignore[assignment]

    def __init__(self, dataset: Dataset, schedule: Schedule) -> None:
        super().__init__(range(len(dataset)), batch_size=1, drop_last=False)
        self.batch_size = None
        self.schedule = schedule

    def __iter__(self) -> Iterator[list[int]]:
        for number in self.schedule.order(self.epoch):
            yield self.schedule.batches[number].tolist()

    def __len__(self) -> int:
        return self.schedule.batches_an_epoch


class StageTrainer(SentenceTransformerTrainer):
    """The stock trainer, but a checkpoint holds only what training changes: a model's copy a minute would fill disks."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Add none: it would embed examples for a card that is never written; `export.card` makes one."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trainable_weights(self.model), folder / TRAINABLE_WEIGHTS)

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        super()._save_checkpoint(*arguments, **options)
        if self.args.should_save:
            forget_old_checkpoints(Path(str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trainable(self.model, load_file(Path(resume_from_checkpoint) / TRAINABLE_WEIGHTS))


class _TokenCounter(TrainerCallback):
    """Counts the tokens and texts of every step, resumed ones included, and reports them."""

    def __init__(self, schedule: Schedule, progress: Progress | None) -> None:
        self.schedule = schedule
        self.progress = progress
        self.tokens = 0
        self.texts = 0
        self.remaining = schedule.steps_in_order()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for _step in range(state.global_step):
            self._advance()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._advance()

    def _advance(self) -> None:
        batches = next(self.remaining)
        tokens = int(self.schedule.batch_tokens[batches].sum())
        self.tokens += tokens
        self.texts += sum(len(self.schedule.batches[batch]) for batch in batches)
        if self.progress:
            self.progress(tokens)


def _callback_named(trainer: SentenceTransformerTrainer, name: str) -> type:
    return next(type(callback) for callback in trainer.callback_handler.callbacks if type(callback).__name__ == name)
