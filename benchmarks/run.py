"""Speed as ratios of things measured in one run on one machine: `make bench`.

Prints a table and writes `runs/bench.json`. Corpus: the docstrings of the running Python. Backbone: that of the quickstart.
A ratio is the median of `REPEATS` alternating measurements, so that a busy moment of the machine hits both sides.
"""

import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer

from text2token.backbone import LoraSettings, add_lora, load_embedder, tokenizer_of
from text2token.corpus.readers import read_documents
from text2token.head import load_head
from text2token.loss import TokenTargetLoss
from text2token.quickstart import quickstart_recipe
from text2token.targets.data_driven import DataDrivenTargets
from text2token.training import StageSettings, TargetCollator, plan, text_lengths, train_stage
from text2token.vocabulary import TargetVocabulary, tokenise

REPEATS = 3
TRAINING_TOKENS = 10_000


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(name: str, ours: Callable[[], object], others: dict[str, Callable[[], object]]) -> dict[str, object]:
    """Return the median of each time and, for each other, how many times faster ours is."""
    times: dict[str, list[float]] = {"ours": [], **{other: [] for other in others}}
    for _ in range(REPEATS):
        times["ours"].append(seconds(ours))
        for other, work in others.items():
            times[other].append(seconds(work))
    ratios = {
        other: round(statistics.median(b / a for a, b in zip(times["ours"], times[other], strict=True)), 2)
        for other in others
    }
    for other, ratio in ratios.items():
        print(f"{name:28} {ratio:5.2f} × the speed of {other}", flush=True)
    return {"name": name, "ratios": ratios, "seconds": {key: statistics.median(value) for key, value in times.items()}}


def main() -> None:
    """Measure everything, print the ratios, keep the figures."""
    settings = quickstart_recipe().backbone
    texts = [document.text for document in read_documents(["python:stdlib"])]
    embedder = load_embedder(settings)
    tokenizer = tokenizer_of(embedder)
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer)
    many = texts * 4

    def targets() -> None:
        for _ in DataDrivenTargets(tokenizer, vocabulary).fit(many).transform(many):
            pass

    results = [
        compare(
            f"targets, {len(many):,} documents",
            targets,
            {
                "the tokenizer, twice (fit and transform)": lambda: [tokenise(tokenizer, many) for _ in range(2)],
                "scikit-learn's TfidfVectorizer": lambda: TfidfVectorizer().fit_transform(many),
            },
        )
    ]

    short = [text[:220] for text in texts]
    constructor = DataDrivenTargets(tokenizer, vocabulary).fit(short)
    rows: dict[str, list[object]] = {"text": [], "token_ids": [], "weights": []}
    for batch in constructor.transform(short):
        for key, values in batch.items():
            rows[key] += values  # type: ignore[operator]
    dataset = Dataset.from_dict(rows)
    add_lora(embedder, LoraSettings(), seed=0)
    loss = TokenTargetLoss(embedder, load_head(embedder, settings.name))
    stage = StageSettings(max_tokens=TRAINING_TOKENS, tokens_per_batch=512, steps_per_checkpoint=10_000)
    schedule = plan(text_lengths(embedder, dataset), stage, seed=0)
    collate = TargetCollator(preprocess_fn=embedder.preprocess)
    steps = [schedule.batches[number] for number in schedule.order(0)[: schedule.steps]]
    batches = [collate([{**dataset[int(row)], "row": int(row)} for row in step]) for step in steps]

    def bare() -> None:
        embedder.train()
        for batch in batches:
            inputs = {key.removeprefix("text_"): value for key, value in batch.items() if key.startswith("text_")}
            hidden = embedder[0](inputs)["token_embeddings"]
            hidden[:, -1].float().pow(2).mean().backward()
            embedder.zero_grad()

    def stage_run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            train_stage(embedder, loss, dataset, schedule, stage, Path(folder))

    results.append(compare(f"training, {schedule.tokens_to_see:,} tokens", stage_run, {"a bare forward and backward": bare}))
    report = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "results": results,
    }
    path = Path("runs/bench.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=2))
    print(f"{report['machine']}, torch {report['torch']}; all figures in {path}")


if __name__ == "__main__":
    main()
