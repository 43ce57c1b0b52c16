"""An embedding decoded to weighted tokens, as a plain `SparseEncoder` of stock modules.

    embedder → Dense(dimension, vocabulary, ReLU), the strongest tokens kept

The head would be the natural decoder, but an exported embedder has lost the layer that the head reads after, and its
probabilities are calibrated for predicting words, not for comparing texts. So the decoder is learnt anew, in closed form,
from a sample of texts without labels:

    W = argmin |Z W - (T - mean T)|² + s |W|²

with Z the embeddings and T the sample's data-driven targets, tokens by idf, each row of unit length: what the embedder was
trained to predict, less what all texts have in common.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from scipy.sparse import csr_array, diags_array
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Dense, Transformer
from torch import Tensor, nn

from text2token.errors import CorpusError, ModelError
from text2token.export.card import sparse_card
from text2token.export.folder import check_output, export_sparse
from text2token.model.backbone import embed, open_embedder, room_for_text, tokenizer_of
from text2token.model.whitening import sample_texts
from text2token.progress import Reporter, Silent
from text2token.targets.data_driven import DataDrivenTargets
from text2token.tokens.vocabulary import TargetVocabulary

ACTIVE_TOKENS = 128
RIDGE = 10.0  # times the mean variance of a dimension
FEWEST_TEXTS = 50


def sparse_embedder(
    embedder: SentenceTransformer, texts: Sequence[str], active: int = ACTIVE_TOKENS, reporter: Reporter | None = None
) -> SparseEncoder:
    """Return the encoder whose vectors, of the vocabulary's size, have at most `active` tokens; compare them by cosine.

    `texts` are what its decoder is learnt from, of the kind that will be searched; a thousand are plenty. Raises
    `ModelError` for an embedder without a tokenizer of words, `CorpusError` for fewer texts than `FEWEST_TEXTS`.
    """
    if not isinstance(embedder[0], Transformer):
        raise ModelError("static embeddings have no layers to read words from; index them, and BM25 serves for words")
    if len(texts) < FEWEST_TEXTS:
        raise CorpusError(f"{len(texts)} texts are too few to learn from; give at least {FEWEST_TEXTS}")
    tokenizer = tokenizer_of(embedder)
    vocabulary = TargetVocabulary.from_tokenizer(tokenizer).with_one_form()
    targets = DataDrivenTargets(tokenizer, vocabulary, max_tokens=room_for_text(tokenizer)).fit(texts)
    with (reporter or Silent()).progress("Embedding a sample", len(texts), "texts") as progress:
        embeddings = embed(embedder, texts, progress)
    weight = fit_words(embeddings, targets.rows(texts))
    words = Dense(weight.shape[0], weight.shape[1], False, nn.ReLU(), init_weight=weight.T.contiguous())
    return SparseEncoder(modules=[*embedder, words], max_active_dims=active, similarity_fn_name="cosine")


def fit_words(embeddings: Tensor, targets: csr_array) -> Tensor:
    """Return W of the formula above, shape (dimension, vocabulary), solved in float64.

    `embeddings` has shape (texts, dimension), `targets` (texts, vocabulary).
    """
    z = embeddings.double().numpy()
    lengths = np.sqrt(np.asarray(targets.multiply(targets).sum(axis=1)).ravel())
    rows = csr_array(diags_array(1 / np.maximum(lengths, 1e-12)) @ targets)
    against = (rows.T @ z).T - np.outer(z.sum(0), np.asarray(rows.mean(axis=0)).ravel())
    gram = z.T @ z
    ridge = RIDGE * np.trace(gram) / len(gram)
    return torch.from_numpy(np.linalg.solve(gram + ridge * np.eye(len(gram)), against)).float()


def build_sparse(
    model: str,
    passages: Dataset,
    folder: Path,
    *,
    active: int = ACTIVE_TOKENS,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> SparseEncoder:
    """Make the sparse encoder of the embedder `model`, write it to `folder` and return it; `OutputError` when that is taken.

    Its decoder is learnt from a sample of `passages` (column `text`).
    """
    check_output(folder, overwrite, model)
    encoder = sparse_embedder(open_embedder(model), sample_texts(passages, seed=0), active, reporter)
    export_sparse(encoder, folder, sparse_card(model, active), overwrite)
    return encoder
