"""A run's folder: where its steps leave their files, what each was made from, and the lock on it.

Settings that a step depends on are digested as whole sections, so that no setting is forgotten; models by their files too
(`model_state`), because other weights may come under the same name.
"""

import contextlib
import dataclasses
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from text2token.corpus.documents import Document
from text2token.corpus.published import without_secrets
from text2token.corpus.readers import Documents, documents_of, source_state
from text2token.engine import Engine
from text2token.errors import OutputError, UsageError
from text2token.export.folder import check_output
from text2token.files import alone_in, atomic_file, check_ours, claim, forget, is_ours
from text2token.model.backbone import model_state
from text2token.progress import SILENT, Phases, Reporter
from text2token.recipe import Recipe, read_recipe
from text2token.steps import Steps, digest
from text2token.targets.base import HERE
from text2token.training.processes import Processes, together

HISTORY = "history.jsonl"
EARLIER_HISTORY = "diary.jsonl"  # its name in runs of earlier versions
WEIGHTS = "weights.safetensors"


class RunFolder:
    """The places of a run's files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe = root / "recipe.toml"
        self.corpus = root / "corpus"
        self.targets = root / "targets"
        self.stages = root / "stages"
        self.results = root / "results.json"
        self.embedded = root / "embedded"
        self.cache = root / "cache"

    def last_file(self, step: str) -> Path:
        """Return the file that `step` writes last."""
        if step.startswith("targets/"):
            return self.root / step / "card.json"
        return {"corpus": self.corpus / "summary.json", "result": self.results}.get(step, self.stages / step / WEIGHTS)

    def rows_of(self, stage: str) -> Path:
        """Return the file with the numbers of the passages that have this stage's targets; there is none where all have."""
        return self.targets / f"{stage}.safetensors"

    def check(self) -> None:
        """Raise `OutputError` where one of the folders was made by something else: such are never replaced."""
        for folder in (self.corpus, *self._after_the_corpus()):
            check_ours(folder)

    def forget(self) -> None:
        """Delete what an earlier run made of its corpus, and nothing else that may be in the folder."""
        for folder in self._after_the_corpus():
            forget(folder)
        for file in (self.recipe, self.results, *filter(_of_a_stage, self.targets.glob("*.safetensors"))):
            file.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Delete what only an unfinished run resumes from: checkpoints, and a copy of the targets to train on."""
        forget(self.cache)
        for stage in filter(is_ours, self.stages.glob("*")):
            for checkpoint in stage.glob("checkpoints-*/checkpoint-*"):
                shutil.rmtree(checkpoint, ignore_errors=True)

    def _after_the_corpus(self) -> list[Path]:
        steps = filter(_of_a_stage, [*self.targets.glob("*"), *self.stages.glob("*")])
        return [*(path for path in steps if path.is_dir()), self.embedded, self.cache]


def _of_a_stage(path: Path) -> bool:
    return re.fullmatch(r"stage\d+", path.stem) is not None


def made_from(recipe: Recipe, corpus: Any, processes: int = 1) -> dict[str, str]:
    """Return for each step of a run a digest of all that decides its outcome; `corpus` stands for the texts.

    `processes` train together: a step of theirs takes so many times the batches.
    """
    shared = [processes] if processes > 1 else []
    steps = {"corpus": digest(recipe.corpus, recipe.reading, corpus)}
    backbone = [recipe.backbone, recipe.vocabulary, model_state(recipe.backbone.name)]
    before = [recipe.lora, recipe.seed, *shared]
    for name, stage in recipe.named_stages.items():
        of_targets = [stage.targets, recipe.targets.data_driven, getattr(recipe.targets, stage.targets)]
        teacher = before if name in recipe.taught else []
        steps[f"targets/{name}"] = digest(
            steps["corpus"], *backbone, *of_targets, stage.schedule, recipe.seed, *shared, *teacher
        )
        steps[name] = digest(steps[f"targets/{name}"], stage, *before)
        before = [steps[name]]
    steps["result"] = digest(*before, recipe.cut_layers, recipe.postprocessing, recipe.evaluation_share)
    return steps


@dataclass
class Run:
    """A run under way: its folder, the finished steps there, and the engine, reporter and processes that it uses."""

    folder: RunFolder
    made_from: dict[str, str]
    engine: Engine = HERE
    reporter: Reporter = SILENT
    processes: Processes = field(default_factory=together)
    phases: Phases = field(default_factory=Phases)

    @property
    def steps(self) -> Steps:
        """The steps that are finished in the folder."""
        return Steps(self.folder.root)

    def is_made(self, step: str) -> bool:
        """Return whether `step` was finished from the same settings, texts and models, and its files are still there."""
        return self.steps.is_made(step, self.made_from[step], self.folder.last_file(step))

    @contextmanager
    def making(self, step: str) -> Iterator[None]:
        """Note that `step` is finished when the block succeeds."""
        if not self.processes.first:
            yield
            return
        with self.steps.making(step, self.made_from[step]):
            yield

    def check(self, recipe: Recipe, model: Path, overwrite: bool) -> None:
        """Raise `OutputError` before the first minute of work where the results may not be written."""
        if not self.processes.first:
            return
        self.folder.check()
        finished = self.steps.begun() and (model / "modules.json").exists()
        check_output(model, overwrite or finished, recipe.backbone.name)
        if finished and not overwrite:
            self._check_same_sources(recipe, model)

    def begin(self, recipe: Recipe, documents: Documents | list[Document], overwrite: bool) -> None:
        """Note what each step is made from. Files are identified by size and time, documents in memory by their texts."""
        if isinstance(documents, Documents):
            texts: list[Any] = [source_state(documents.sources), documents.text_field, documents.format]
        else:
            texts = [(document.title, document.body, document.place) for document in documents]
        self.made_from = made_from(recipe, texts, self.processes.count)
        if overwrite and self.processes.first:
            self.steps.forget()

    def _check_same_sources(self, recipe: Recipe, model: Path) -> None:
        """Raise `OutputError` where the finished model was trained on something else than is named now."""
        try:
            earlier = read_recipe(str(self.folder.recipe)).sources
        except UsageError:  # of another version
            return
        if earlier != tuple(map(without_secrets, recipe.sources)):
            named = ", ".join(earlier) or "documents from memory"
            raise OutputError(f"{model}: was trained on {named}. Choose another folder, or replace it with --overwrite")

    def keep(self, recipe: Recipe) -> None:
        """Write the recipe, without secrets."""
        if self.processes.first:
            claim(self.folder.embedded)
            kept = dataclasses.replace(recipe, sources=tuple(map(without_secrets, recipe.sources)))
            with atomic_file(self.folder.recipe) as path:
                path.write_text(kept.to_toml(), encoding="utf-8", errors="replace")  # a name may be any bytes

    def first_alone(self) -> AbstractContextManager[None]:
        """Let the first of the processes go through the block; then the others find its files."""
        return self.processes.first_alone()


def texts_of(recipe: Recipe, documents: Iterable[Document] | None, reporter: Reporter) -> Documents | list[Document]:
    """Return the documents to read, as often as they are wanted: those given, or what `recipe.sources` names."""
    if documents is None:
        return documents_of(recipe.sources, recipe.reading, reporter)
    return documents if isinstance(documents, Documents) else list(documents)


@contextmanager
def run_alone_in(folder: Path, model: Path, reporter: Reporter, engine: Engine) -> Iterator[Run]:
    """Yield the run in `folder`; while the block runs no other process works there or writes `model`."""
    processes = together()
    with contextlib.ExitStack() as locks:
        if processes.first:
            locks.enter_context(alone_in(folder, record=Steps.RECORD))
            locks.enter_context(alone_in(model, beside=True))
        yield Run(RunFolder(folder), {}, engine, reporter if processes.first else SILENT, processes)
