"""The exported embedder on disk: a plain sentence-transformers folder of stock modules.

    Transformer → Pooling → Dense (centring or whitening) → Normalize

The folder is written in the older of the two layouts that sentence-transformers reads, because its other readers (older
releases, vLLM, llama.cpp) know only that one and mis-pool the new one without a word.
"""

import json
from pathlib import Path
from typing import Any, cast

from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from text2token.corpus.normalisation import control_tokens_as_vocabulary
from text2token.errors import ModelError, OutputError
from text2token.files import atomic_folder, check_ours, real, writing
from text2token.model.adapters import merge_lora
from text2token.model.backbone import tokenizer_of, transformer_of
from text2token.model.whitening import Whitening
from text2token.tokens.vocabulary import tokenise

PARTS = ("lens", "held_out.json")  # what is written into a model's folder after it (lens.reader, evaluation.held_out)
LEGACY_MODULES = "sentence_transformers.models"
LEGACY_POOLING = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
LEGACY_DENSE = ("in_features", "out_features", "bias", "activation_function")
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
LOADS_EVERYWHERE = "PreTrainedTokenizerFast"
MODULE_CONFIG = "sentence_bert_config.json"
# a family whose tokenizer is whatever stands in tokenizer.json, to transformers 4 as to 5
AS_IT_STANDS = {"tokenizer_type": "glm"}
SAMPLES = (
    "A text to compare the tokens of, before and after.",
    " \r\nOuter space and line ends, and a letter in two parts: e\u0301. \n",
)


def export_embedder(
    embedder: SentenceTransformer, whitening: Whitening, folder: Path, card: str, overwrite: bool = False
) -> None:
    """Merge adapters into `embedder` (in place, float32) and write it to `folder`, all or nothing.

    `whitening` is applied to every embedding before it is scaled to unit length. `card` is the README. Raises
    `OutputError` when `folder` exists and `overwrite` is false.
    """
    check_output(folder, overwrite)
    merge_lora(embedder)
    embedder.float()
    pooling = cast(Pooling, embedder[1])
    model = SentenceTransformer(modules=[transformer_of(embedder), pooling, whitening.module(), Normalize()])
    with atomic_folder(folder, parts=PARTS) as unfinished:
        model.save(str(unfinished), create_model_card=False)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        _write_legacy_layout(unfinished, embedder, pooling)
        _write_tokenizer(unfinished, embedder)


def export_static(model: SentenceTransformer, folder: Path, card: str, overwrite: bool = False) -> None:
    """Write a model without a transformer to `folder`, all or nothing; `OutputError` as for `export_embedder`."""
    check_output(folder, overwrite)
    with atomic_folder(folder, parts=PARTS) as unfinished:
        model.save(str(unfinished), create_model_card=False)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        _write_legacy_modules(unfinished)


def export_sparse(model: SparseEncoder, folder: Path, card: str, overwrite: bool = False) -> None:
    """Write a sparse encoder to `folder`, all or nothing; `OutputError` as for `export_embedder`."""
    check_output(folder, overwrite)
    with atomic_folder(folder) as unfinished:
        model.save(str(unfinished), create_model_card=False)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        _write_tokenizer(unfinished, model)


def check_output(folder: Path, overwrite: bool, model: str = "") -> None:
    """Raise `OutputError` unless `folder` is free to be written; called before long work as well as after it.

    With `overwrite` one that was made by text2token is free as well, and nobody else's; but not that of the `model` that is
    read, or a folder that it lies in.
    """
    read = Path(model).expanduser()
    if model and read.exists() and real(read).is_relative_to(real(folder)):
        raise OutputError(f"{folder}: holds the model that is read ({model}), which would be lost. Choose another folder")
    with writing(folder):
        taken = folder.is_dir() and any(folder.iterdir())
    if taken and not overwrite:
        raise OutputError(f"{folder}: exists and is not empty. Choose another --output, or replace it with --overwrite")
    check_ours(folder)
    check_ours(folder / PARTS[0])


def _write_legacy_layout(folder: Path, embedder: SentenceTransformer, pooling: Pooling) -> None:
    _write_legacy_modules(folder)
    pooling_config = {legacy: pooling.pooling_mode == mode for mode, legacy in LEGACY_POOLING.items()}
    pooling_config |= {"word_embedding_dimension": pooling.embedding_dimension, "include_prompt": True}  # type: ignore[dict-item]
    _write(folder / "1_Pooling" / "config.json", pooling_config)
    dense_config = _read(folder / "2_Dense" / "config.json")
    _write(folder / "2_Dense" / "config.json", {key: dense_config[key] for key in LEGACY_DENSE})
    tokenizer = tokenizer_of(embedder)
    _write(folder / MODULE_CONFIG, {"max_seq_length": tokenizer.model_max_length, "do_lower_case": False})
    config = _read(folder / "config.json")
    _write(folder / "config.json", with_older_rope(config))
    tokenizer_config = _read(folder / TOKENIZER_CONFIG)
    tokenizer_config["tokenizer_class"] = LOADS_EVERYWHERE  # other classes may rebuild the post-processor, prompt and all
    tokenizer_config = {
        key: value for key, value in tokenizer_config.items() if key not in ("backend", "is_local", "local_files_only")
    }
    _write(folder / TOKENIZER_CONFIG, tokenizer_config)
    (folder / "chat_template.jinja").unlink(missing_ok=True)


def with_older_rope(config: dict[str, Any]) -> dict[str, Any]:
    """Return a model's configuration in which transformers 4 finds the rotary positions too.

    It does not know `rope_parameters`, and would take its defaults without a word. Where they differ by the kind of layer,
    `rope_theta` and `rope_scaling` are those of full attention, and `rope_local_base_freq` the theta of sliding attention.
    """
    config = {key: with_older_rope(value) if key.endswith("_config") and value else value for key, value in config.items()}
    given = config.get("rope_parameters") or {}
    full, sliding = given.get("full_attention") or given, given.get("sliding_attention") or {}
    older: dict[str, Any] = {}
    if theta := full.get("rope_theta"):
        older |= (
            {"rope_theta": theta, "rotary_emb_base": theta}
            if config.get("model_type") == "gpt_neox"
            else {"rope_theta": theta}
        )
    if (share := full.get("partial_rotary_factor")) is not None:
        older["rotary_pct" if config.get("model_type") == "gpt_neox" else "partial_rotary_factor"] = share
    if full.get("rope_type", "default") != "default":
        older["rope_scaling"] = {
            key: value for key, value in full.items() if key not in ("rope_theta", "partial_rotary_factor")
        }
    if theta := sliding.get("rope_theta"):
        older["rope_local_base_freq"] = theta
    return older | config


def _write_legacy_modules(folder: Path) -> None:
    modules = _read(folder / "modules.json")
    for module in modules:
        module["type"] = f"{LEGACY_MODULES}.{module['type'].rpartition('.')[2]}"
    _write(folder / "modules.json", modules)


def _write_tokenizer(folder: Path, embedder: SentenceTransformer | SparseEncoder) -> None:
    """Let readers of `tokenizer.json` alone, as well as transformers, give the trained tokens, or raise `ModelError`.

    A control token spelt in a text is that text to both: the one finds none there, the other has a setting for it.
    """
    tokenizer = tokenizer_of(embedder)
    if tokenizer.split_special_tokens:
        added = _read(folder / TOKENIZER)["added_tokens"]
        state = control_tokens_as_vocabulary(_read(folder / TOKENIZER))
        _write(folder / TOKENIZER, state)
        config = _read(folder / TOKENIZER_CONFIG)
        config["split_special_tokens"] = True
        config["added_tokens_decoder"] = {str(token.pop("id")): token for token in added}
        _write(folder / TOKENIZER_CONFIG, config)
    samples = [*SAMPLES, "Text that spells " + " ".join(tokenizer.all_special_tokens)]
    expected = tokenise(tokenizer, samples, prompt=True)
    found = tokenise(AutoTokenizer.from_pretrained(folder), samples, prompt=True)
    if found != expected:  # for some families (Qwen 2) transformers takes another class, which builds another normaliser
        config = _read(folder / MODULE_CONFIG) | {"tokenizer_args": AS_IT_STANDS}
        _write(folder / MODULE_CONFIG, config)
        found = tokenise(AutoTokenizer.from_pretrained(folder, **AS_IT_STANDS), samples, prompt=True)
    alone = Tokenizer.from_file(str(folder / TOKENIZER))
    alone.no_padding()
    alone.no_truncation()
    if found != expected or [alone.encode(sample).ids for sample in samples] != expected:
        raise ModelError(
            f"{folder.name}: the saved tokenizer gives other tokens ({found}) than the trained one ({expected})"
        )


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
