"""What training and encoding make of a GPU: their share of its peak, padding, memory, and a peer's own way beside them.

    python bench/experiments/gpu.py [BACKBONE] [--shapes 135M,1.1B] [--sections passes,training,peer,encoding] [--write]

BACKBONE lends its shape and its tokenizer; the weights are drawn at random, which costs the same arithmetic. Measured are
its own shape (135M) and one of a billion weights. Texts are those of `make bench`. Needs a CUDA GPU with bfloat16; prints
a table, keeps all figures in `runs/gpu.json`, and with `--write` puts the table into bench/docs/performance.md.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from measure import Line, put_into_page, ratio, seconds, table
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from speed import SETTINGS, Stage, documents
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from text2token.cli.show import quiet_libraries
from text2token.export.folder import export_embedder
from text2token.model.adapters import add_lora
from text2token.model.backbone import embed, load_embedder, resolve_backbone, token_lengths, tokenizer_of, transformer_of
from text2token.model.encoder import open_encoder
from text2token.model.whitening import fit_postprocessing
from text2token.recipe import BackboneSettings, LoraSettings

REPORT = Path("runs/gpu.json")
BILLION = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
SHAPES: dict[str, dict[str, int]] = {"135M": {}, "1.1B": BILLION}
STEPS = 24
TOKENS_PER_BATCH = 16_384
REPEATS = 1
PASSES = (64, 1024, 4096, 16_384, 32_768)  # tokens
WORDS = 64  # tokens of a text in those passes
TEXTS_PER_BATCH = 256  # of the peer: as many tokens as ours
GOAL = 0.45  # of the peak


def main() -> None:
    """Measure both shapes and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", nargs="?", default=SETTINGS.name)
    sections = {section.__name__: section for section in (passes, training, peer, encoding)}
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--sections", default=",".join(sections))
    parser.add_argument("--write", action="store_true", help="Put the table into bench/docs/performance.md.")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here")
    quiet_libraries()
    machine = (
        f"{torch.cuda.get_device_name()}, {os.cpu_count()} CPU cores; Python {sys.version.split()[0]}, "
        f"torch {torch.__version__}; bfloat16"
    )
    peak = square_products()
    lines = [
        Line("matrix products, 8,192 × 8,192", "", f"{peak / 1e12:,.0f} TFLOP/s: the peak below", "", None, {"peak": peak})
    ]
    for name in chosen.shapes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            backbone = random_backbone(chosen.backbone, SHAPES[name], Path(folder) / "backbone")
            for section in chosen.sections.split(","):
                lines += sections[section](name, backbone, peak)
                torch.cuda.empty_cache()
                REPORT.parent.mkdir(exist_ok=True)
                kept = {"machine": machine, "lines": [asdict(line) for line in lines]}
                REPORT.write_text(json.dumps(kept, indent=2, ensure_ascii=False), encoding="utf-8")
    figures = table(lines, f"{machine}.")
    print(f"\n{figures}\nAll figures: {REPORT}")
    if chosen.write:
        put_into_page(figures, "bench/experiments/gpu.py")


def square_products() -> float:
    """Return the rate of large matrix products in FLOP/s: what this GPU does, not what its data sheet says."""
    size, times = 8192, 20
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def products() -> None:
        for _ in range(times):
            a @ b

    products()
    return 2 * size**3 * times / statistics.median(seconds(products) for _ in range(3))


def random_backbone(like: str, changes: dict[str, int], folder: Path) -> BackboneSettings:
    """Write a model of random weights, of the shape of `like` but for `changes`, and return the settings to load it."""
    source = resolve_backbone(like)
    config = AutoConfig.from_pretrained(source)
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.device("cuda"):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return BackboneSettings(str(folder), prompt=SETTINGS.prompt, max_length=SETTINGS.max_length)


def linear_flops(backbone: BackboneSettings) -> int:
    """Return the floating-point operations of a token in the linear layers, forward: two for every weight."""
    model = transformer_of(load_embedder(backbone)).model
    return 2 * sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


def bare_step(backbone: BackboneSettings) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Return a forward and backward pass of the backbone with frozen weights, from token ids and their mask."""
    model = transformer_of(load_embedder(backbone)).model.requires_grad_(False).train()
    embeddings = model.get_input_embeddings()

    def step(tokens: torch.Tensor, mask: torch.Tensor) -> None:
        embedded = embeddings(tokens).detach().requires_grad_(True)
        hidden = model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).last_hidden_state
        hidden[:, -1].float().square().mean().backward()

    return step


def passes(name: str, backbone: BackboneSettings, peak: float) -> list[Line]:
    """Return what a pass through the model costs before its first token."""
    step = bare_step(backbone)
    taken = {}
    for tokens in PASSES:
        ids = torch.randint(1000, 40_000, (tokens // WORDS, WORDS), device="cuda")
        mask = torch.ones_like(ids)
        taken[tokens] = statistics.median(seconds(lambda ids=ids, mask=mask: step(ids, mask)) for _ in range(5))
    few, many = PASSES[0], PASSES[-1]
    each = (taken[many] - taken[few]) / (many - few)
    figure = f"{1000 * taken[few]:.0f} ms, the time of {taken[few] / each:,.0f} tokens more"
    print(f"{name}, passes: {figure} {taken}", flush=True)
    return [Line(f"{name}: forward and backward, before the first token", "", figure, "", None, {"seconds": taken})]


def training(name: str, backbone: BackboneSettings, peak: float) -> list[Line]:
    """Return training against the bare backbone on the same batches, and its share of the peak."""
    stage = Stage(STEPS * TOKENS_PER_BATCH, backbone=backbone, tokens_per_batch=TOKENS_PER_BATCH)
    step = bare_step(backbone)
    given = [(tokens.cuda(), mask.cuda()) for tokens, mask in stage.passes]

    def bare() -> None:
        for tokens, mask in given:
            step(tokens, mask)

    tokens = stage.schedule.tokens_to_see
    torch.cuda.reset_peak_memory_stats()
    line = ratio(
        f"{name}: training, {tokens:,} tokens", "the bare backbone, forward and backward", stage.run, bare, 0.9, REPEATS
    )
    padded = sum(ids.numel() for ids, _ in stage.passes)
    flops = 2 * linear_flops(backbone)  # the weights are frozen: backward only the activations
    rates = {kind: tokens / line.details[f"seconds_{kind}"] for kind in ("ours", "other")}  # type: ignore[operator]
    shares = {kind: rate * flops / peak for kind, rate in rates.items()}
    line.details.update(tokens_per_second=rates, share_of_peak=shares, padding=1 - tokens / padded, memory=_memory())
    figure = (
        f"{rates['ours']:,.0f} tokens/s, {shares['ours']:.0%} of the peak (bare {shares['other']:.0%}); "
        f"padding {1 - tokens / padded:.1%}; {_memory() / 2**30:.1f} GB"
    )
    print(f"{name}, training: {figure}", flush=True)
    reached = shares["ours"] >= GOAL
    return [
        line,
        Line(f"{name}: the same", "the matrix products of its frozen weights", figure, f"≥ {GOAL:.0%}", reached, {}),
    ]


def peer(name: str, backbone: BackboneSettings, peak: float) -> list[Line]:
    """Return our texts a second in training against SimCSE, sentence-transformers' own way."""
    stage = Stage(STEPS * TOKENS_PER_BATCH, backbone=backbone, tokens_per_batch=TOKENS_PER_BATCH)
    model = load_embedder(backbone)
    add_lora(model, LoraSettings(dropout=0.05), seed=0)
    pairs = Dataset.from_dict({"anchor": stage.texts, "positive": stage.texts})
    memory = []

    def simcse() -> None:
        torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory() as folder:
            arguments = SentenceTransformerTrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=TEXTS_PER_BATCH,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                bf16=True,
            )
            SentenceTransformerTrainer(
                model, arguments, train_dataset=pairs, loss=MultipleNegativesRankingLoss(model)
            ).train()
        memory.append(_memory())

    def ours() -> None:
        torch.cuda.reset_peak_memory_stats()
        stage.run()
        memory.append(_memory())

    work, other = f"{name}: training, {len(stage.texts):,} texts", "SimCSE in sentence-transformers"
    try:
        line = ratio(work, other, ours, simcse, 2, 1)
    except torch.OutOfMemoryError:  # a result: the same texts in the same batches need more than there is
        figure = f"{memory[-1] / 2**30:.1f} GB against more than there is, with {TEXTS_PER_BATCH} texts a batch"
        return [Line(work, other, figure, "", None, {"memory": memory[-1]})]
    mine, theirs = (figure / 2**30 for figure in memory[-2:])
    figure = f"{line.figure}; {mine:.1f} against {theirs:.1f} GB"
    return [Line(line.work, line.other, figure, line.reach, line.reached, line.details)]


def encoding(name: str, backbone: BackboneSettings, peak: float) -> list[Line]:
    """Return our encoder against `SentenceTransformer.encode`, as it comes and in bfloat16, and its share of the peak."""
    texts = [text[:220] for text in documents()][::2]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        embedder = load_embedder(backbone)
        export_embedder(embedder, fit_postprocessing(embed(embedder, texts[:200])), model, "")
        del embedder
        fast = open_encoder(str(model), "auto")
        tokens = int(token_lengths(tokenizer_of(fast.model), [texts]).sum())  # type: ignore[arg-type]
        torch.cuda.reset_peak_memory_stats()
        taken = [seconds(lambda: fast.embed(texts, None)) for _ in range(REPEATS + 1)][-1]
        memory, share = _memory(), tokens / taken * linear_flops(backbone) / peak
        figure = f"{tokens / taken:,.0f} tokens/s, {share:.0%} of the peak; {memory / 2**30:.1f} GB"
        print(f"{name}, encoding: {figure}", flush=True)
        details = {"tokens_per_second": tokens / taken, "share_of_peak": share, "memory": memory}
        lines = [Line(f"{name}: encoding, {tokens:,} tokens", "the matrix products", figure, "", None, details)]
        for kind, other in others(str(model)):
            lines.append(
                ratio(
                    f"{name}: encoding, {len(texts):,} texts",
                    kind,
                    lambda: fast.embed(texts, None),
                    lambda other=other: other(texts),
                    None,
                    1,
                )
            )
    return lines


def others(model: str) -> Iterator[tuple[str, Callable[[list[str]], Any]]]:
    """Yield ways to encode with plain sentence-transformers."""
    for kind, options, size in (
        ("as it comes: float32, 32 texts", {}, 32),
        ("bfloat16, 512 texts", {"dtype": "bfloat16"}, 512),
    ):
        plain = SentenceTransformer(model, model_kwargs=options)
        yield (
            f"`SentenceTransformer.encode`, {kind}",
            lambda texts, plain=plain, size=size: plain.encode(texts, batch_size=size, show_progress_bar=False),
        )


def _memory() -> int:
    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main()
