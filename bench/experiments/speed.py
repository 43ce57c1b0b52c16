"""Targets, training and encoding against their limits and against what people use today.

Corpus: the docstrings of the running Python. Backbone: that of the quickstart.
"""

import csv
import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from ablations import NO_LAYERS, STUDENTS
from datasets import Dataset
from measure import Line, ratio, seconds
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sklearn.feature_extraction.text import TfidfVectorizer

from text2token.corpus.readers import read_documents
from text2token.evaluation.labelled import score_suite
from text2token.evaluation.suite import read_suite, sample_suite
from text2token.export.folder import export_embedder
from text2token.export.static import static_embedder
from text2token.model.adapters import add_lora
from text2token.model.backbone import (
    TOKENS_PER_BATCH_CPU,
    batches_of,
    cut_last_layers,
    embed,
    load_embedder,
    tokenizer_of,
    transformer_of,
)
from text2token.model.bundle import Backbone
from text2token.model.encoder import open_encoder
from text2token.model.head import load_head
from text2token.model.whitening import fit_postprocessing
from text2token.recipe import BackboneSettings, LoraSettings, StageSettings, TargetSettings, read_recipe
from text2token.targets.base import TEXTS_PER_PART, bounds
from text2token.targets.constructors import make_constructor
from text2token.targets.data_driven import DataDrivenTargets
from text2token.tokens.vocabulary import TargetVocabulary, tokenise
from text2token.training.collate import TargetCollator, pass_cost
from text2token.training.objective import TokenTargetLoss
from text2token.training.schedule import Schedule, plan
from text2token.training.stage import text_lengths, train_stage

TOKENS_PER_BATCH = 1024
TRAINING_TOKENS = 6_000
SETTINGS = read_recipe("quickstart").backbone
LONG_REPEATS = 3
PEER_REPEATS = 1  # minutes each, and far from the reach
# Of 32 texts their step takes more than 24 GB, because peft keeps float32 copies; checkpointing would only slow it.
LLM2VEC_BATCH = 16
STS_TOKENS = 60_000  # of the development tasks, to see what faster encoding costs in points


def documents() -> list[str]:
    """Return the texts of the standard library."""
    return [document.text for document in read_documents(["python:stdlib"])]


def roofline() -> list[Line]:
    """Return the machine's rate of matrix products at the model's shapes, and what it allows at most in tokens a second."""
    model = transformer_of(load_embedder(SETTINGS)).model
    shapes = [tuple(module.weight.shape) for module in model.modules() if isinstance(module, torch.nn.Linear)]
    flops = 2 * sum(rows * columns for rows, columns in shapes)
    lines = []
    for dtype in (torch.bfloat16, torch.float32):
        taken = 0.0
        for rows, columns in sorted(set(shapes)):
            x, weight = torch.randn(TOKENS_PER_BATCH, columns).to(dtype), torch.randn(rows, columns).to(dtype)

            def products(x: torch.Tensor = x, weight: torch.Tensor = weight) -> None:
                for _ in range(20):
                    torch.nn.functional.linear(x, weight)

            products()
            taken += shapes.count((rows, columns)) * statistics.median(seconds(products) / 20 for _ in range(5))
        rate = flops * TOKENS_PER_BATCH / taken / 1e9
        limit = TOKENS_PER_BATCH / taken
        name = str(dtype).removeprefix("torch.")
        details: dict[str, object] = {"gflops": round(rate), "flops_per_token": flops, "tokens_per_second": round(limit)}
        figure = f"{rate:,.0f} GFLOP/s: at most {limit:,.0f} tokens/s forward, {limit / 2:,.0f} trained with frozen weights"
        lines.append(Line(f"matrix products, {name}", f"{flops / 1e9:.2f} GFLOP a token", figure, "", None, details))
        print(f"roofline, {name}: {figure}", flush=True)
    return lines


def targets() -> list[Line]:
    """Return data-driven targets against the tokenizer alone and against TF-IDF, in documents a second."""
    embedder = load_embedder(SETTINGS)
    tokenizer = tokenizer_of(embedder)
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer)
    many = documents() * 4

    def ours() -> None:
        constructor = DataDrivenTargets(tokenizer, vocabulary)
        with tempfile.TemporaryDirectory() as folder:
            constructor.remember = Path(folder)
            constructor.fit(many)
            for start, stop in bounds(len(many), TEXTS_PER_PART):
                for _batch in constructor.transform(many, rows=np.arange(start, stop)):
                    pass

    name = f"data-driven targets, {len(many):,} documents"
    return [
        ratio(name, "the tokenizer alone", ours, lambda: tokenise(tokenizer, many), 0.8),
        ratio(name, "scikit-learn's TfidfVectorizer", ours, lambda: TfidfVectorizer().fit_transform(many), 3),
    ]


def model_derived_targets() -> list[Line]:
    """Return model-derived targets against nothing but forward passes over the same tokens, in documents a second."""
    embedder = load_embedder(SETTINGS)
    tokenizer, backbone = tokenizer_of(embedder), transformer_of(embedder).model
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer)
    texts = [text[:220] for text in documents()][::20]
    asked = Backbone(SETTINGS, embedder, vocabulary)
    constructor = make_constructor("model_derived", asked, TargetSettings()).fit(texts[:50])
    ids = tokenise(tokenizer, texts, prompt=True)
    lengths = np.minimum([len(tokens) for tokens in ids], SETTINGS.max_length)
    batches = [
        torch.tensor([(ids[row] + [0] * SETTINGS.max_length)[: lengths[rows].max()] for row in rows])
        for rows in batches_of(np.argsort(lengths, kind="stable"), lengths, TOKENS_PER_BATCH_CPU)
    ]

    def ours() -> None:
        for _ in constructor.transform(texts):
            pass

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                backbone(input_ids=batch)

    name = f"model-derived targets, {len(texts):,} documents"
    return [ratio(name, "bare forward passes", ours, bare, 0.9, LONG_REPEATS)]


class Stage:
    """One stage of our training on short texts, and the passes through the model that it makes."""

    def __init__(
        self,
        tokens: int,
        lora: LoraSettings | None = None,
        backbone: BackboneSettings = SETTINGS,
        tokens_per_batch: int = TOKENS_PER_BATCH,
    ) -> None:
        self.embedder = load_embedder(backbone)
        self.tokenizer = tokenizer_of(self.embedder)
        vocabulary = TargetVocabulary.from_tokenizer(self.tokenizer)
        short = [text[:220] for text in documents()]
        constructor = DataDrivenTargets(self.tokenizer, vocabulary).fit(short)
        self.rows = Dataset(pa.Table.from_batches(constructor.transform(short)))
        self.settings = StageSettings(
            max_tokens=tokens, epochs=100, tokens_per_batch=tokens_per_batch, steps_per_checkpoint=10_000
        )
        self.schedule: Schedule = plan(text_lengths(self.embedder, self.rows), self.settings, seed=0)
        collate = TargetCollator(
            preprocess_fn=self.embedder.preprocess, pass_cost=pass_cost(next(self.embedder.parameters()).dtype)
        )
        steps = [self.schedule.batches[number] for (number,) in islice(self.schedule.steps_in_order(), self.schedule.steps)]
        self.texts = [text for step in steps for text in self.rows[step]["text"]]
        batches = [collate([{**self.rows[int(row)], "row": int(row)} for row in step]) for step in steps]
        self.passes = [
            (tokens, batch[name.replace("input_ids", "attention_mask")])
            for batch in batches
            for name, tokens in batch.items()
            if name.endswith("_input_ids")
        ]
        self.loss = TokenTargetLoss(self.embedder, load_head(self.embedder, backbone.name), contrast=0)
        add_lora(self.embedder, lora or LoraSettings(), seed=0)

    def run(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            train_stage(self.embedder, self.loss, self.rows, self.schedule, self.settings, Path(folder))


def training() -> list[Line]:
    """Return our training steps against a bare forward and backward of the backbone on the same batches."""
    stage = Stage(TRAINING_TOKENS)
    backbone = transformer_of(load_embedder(SETTINGS)).model.requires_grad_(False)
    table = backbone.get_input_embeddings()

    def bare() -> None:
        for tokens, mask in stage.passes:
            embedded = table(tokens).detach().requires_grad_(True)
            hidden = backbone(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
            hidden[:, -1].float().square().mean().backward()

    tokens = stage.schedule.tokens_to_see
    line = ratio(
        f"training, {tokens:,} tokens", "the bare backbone, forward and backward", stage.run, bare, 0.9, LONG_REPEATS
    )
    taken = line.details["seconds_ours"]
    assert isinstance(taken, float)
    line.details["tokens_per_second"] = round(tokens / taken)
    layers = transformer_of(stage.embedder).model.config.num_hidden_layers // 2
    half = Stage(TRAINING_TOKENS, LoraSettings(last_layers=layers))
    name = f"the same, adapters on the last {layers} layers"
    return [line, ratio(name, "the bare backbone, forward and backward", half.run, bare, None, LONG_REPEATS)]


def simcse() -> list[Line]:
    """Return our texts a second in training against SimCSE, sentence-transformers' own way."""
    stage = Stage(TRAINING_TOKENS)
    model = load_embedder(SETTINGS)
    transformer_of(model).model.set_attn_implementation("sdpa")  # what a user gets without asking
    add_lora(model, LoraSettings(dropout=0.05), seed=0)
    pairs = Dataset.from_dict({"anchor": stage.texts, "positive": stage.texts})

    def theirs() -> None:
        with tempfile.TemporaryDirectory() as folder:
            arguments = SentenceTransformerTrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=32,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
                bf16=transformer_of(model).model.dtype == torch.bfloat16,
            )
            SentenceTransformerTrainer(
                model, arguments, train_dataset=pairs, loss=MultipleNegativesRankingLoss(model)
            ).train()

    name = f"training, {len(stage.texts):,} texts"
    return [ratio(name, "SimCSE in sentence-transformers", stage.run, theirs, 2, PEER_REPEATS)]


def llm2vec(python: str | None) -> list[Line]:
    """Return the same against the authors' own step of LLM2Vec, run by the interpreter `python`; nothing without one."""
    if not python:
        return []
    stage = Stage(TRAINING_TOKENS)
    ours = [seconds(stage.run) for _ in range(PEER_REPEATS + 1)][1:]
    theirs = _llm2vec(python, stage)
    value = statistics.median(theirs) / statistics.median(ours)
    details: dict[str, object] = {"ratio": round(value, 3), "seconds_ours": ours, "seconds_other": theirs}
    line = Line(
        f"training, {len(stage.texts):,} texts",
        f"SimCSE step of llm2vec 0.2.3, {LLM2VEC_BATCH} texts a batch",
        f"{value:.2f} ×",
        "≥ 2 ×",
        value >= 2,
        details,
    )
    print(f"{line.work}: {line.figure} {line.other}", flush=True)
    return [line]


def _llm2vec(python: str, stage: Stage) -> list[float]:
    config = transformer_of(stage.embedder).model.config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    given = {
        "model": {name: getattr(config, name) for name in (*names, "num_key_value_heads")},
        "token_ids": tokenise(stage.tokenizer, stage.texts),  # without our prompt: their way is the bare text
        "batch": LLM2VEC_BATCH,
        "threads": torch.get_num_threads(),
        "dtype": str(transformer_of(stage.embedder).model.dtype).removeprefix("torch."),
        "repeats": PEER_REPEATS,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "given.json"
        path.write_text(json.dumps(given), encoding="utf-8")
        script = Path(__file__).with_name("llm2vec_step.py")
        output = subprocess.run([python, str(script), str(path)], capture_output=True, text=True, check=True).stdout
    return [float(value) for value in json.loads(output.splitlines()[-1])["seconds"]]


def encoding(suite: Path | None) -> list[Line]:
    """Return our encoder against `SentenceTransformer.encode` with the same weights in float32, and the points it costs."""
    texts = [text[:220] for text in documents()][::16]
    with tempfile.TemporaryDirectory() as folder:
        embedder = load_embedder(SETTINGS)
        export_embedder(embedder, fit_postprocessing(embed(embedder, texts[:200])), Path(folder) / "model", "")
        plain = SentenceTransformer(str(Path(folder) / "model"))
        fast = open_encoder(str(Path(folder) / "model"), "auto")

        def ours() -> None:
            fast.embed(texts, None)

        name = f"encoding, {len(texts):,} texts, CPU"
        other = "`SentenceTransformer.encode`, float32"
        line = ratio(name, other, ours, _quietly(plain, texts), 3, LONG_REPEATS)
        lines = [line]
        if suite:
            tasks = sample_suite([task for task in read_suite(suite) if task.type == "sts"], STS_TOKENS)
            exact = open_encoder(str(Path(folder) / "model"))
            scores = [score_suite(encoder, tasks, Path(folder) / "cache").mean_task for encoder in (exact, fast)]
            figure = f"{scores[0]:.2f} → {scores[1]:.2f} points"
            lost = scores[0] - scores[1]
            names = ", ".join(task.name for task in tasks)
            lines.append(Line("what that costs", f"mean of {names}", figure, "≤ 0.5 lost", lost <= 0.5, {"scores": scores}))
            print(f"encoding: {figure}", flush=True)
    return lines


def students(ablations: Path | None) -> list[Line]:
    """Return how much faster than the whole embedder those of its first layers are, and the table without any.

    Their points are those that `ablations.py --only base,students` left in its folder `ablations`, if given.
    """
    cut = read_recipe("quickstart").cut_layers
    texts = [text[:220] for text in documents()]
    chosen = texts[::16]
    points = _points(ablations) if ablations else {}

    def embedder_of(settings: dict[str, Any]) -> SentenceTransformer:
        own = {key.removeprefix("backbone."): value for key, value in settings.items()}
        embedder = load_embedder(replace(SETTINGS, **own))
        cut_last_layers(embedder, cut)
        return embedder

    whole = embedder_of({})
    embedders = {name: embedder_of(settings) for name, settings in STUDENTS.items()}
    embedders[NO_LAYERS] = static_embedder(SETTINGS, Dataset.from_dict({"text": texts}))
    lines = []
    for name, student in embedders.items():
        line = ratio(
            f"encoding, {name}",
            "all layers",
            partial(embed, student, chosen),
            partial(embed, whole, chosen),
            None,
            LONG_REPEATS,
        )
        if name in points:
            line = replace(line, figure=f"{line.figure}, {points['the default']} → {points[name]} points")
        lines.append(line)
    return lines


def _points(ablations: Path) -> dict[str, str]:
    """Return the best Mean(TaskType) of each peer of a comparison's folder."""
    with (ablations / "leaderboard.csv").open(encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: float(row["mean_task_type"]))
    return {row["peer"]: f"{float(row['mean_task_type']):.1f}" for row in rows}


def _quietly(model: SentenceTransformer, texts: list[str]) -> Callable[[], np.ndarray]:
    return lambda: model.encode(texts, show_progress_bar=False)
