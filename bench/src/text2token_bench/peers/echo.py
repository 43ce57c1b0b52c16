"""Echo embeddings (Springer et al. 2024): say the text twice and pool the second time, when every token has seen all.

Costs twice the tokens. The text is cut so that both copies fit into the backbone's length.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from text2token import load_embedder
from text2token_bench.inside import Progress, TextEncoder, model_fingerprint, tokenizer_of, transformer_of
from text2token_bench.peers.peer import Built, Peer, Settings, Workshop

FRAMES = (("Document:", "\nDocument again:"), ("Rewrite the sentence: ", ", rewritten sentence: "))
TEXTS_PER_BATCH = 32


def build(workshop: Workshop, settings: Settings) -> Built:
    """Return the encoder that pools the mean of each text's second copy and the end-of-text token."""
    embedder = load_embedder(workshop.backbone_with(prompt="{text}", pooling="mean"))
    tokenizer, model = tokenizer_of(embedder), transformer_of(embedder).model
    first, second = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in settings["frame"])
    start = tokenizer("")["input_ids"]  # a beginning-of-text token, where the tokenizer adds one
    room = 2 * tokenizer.model_max_length

    def embed_batch(texts: Sequence[str]) -> Tensor:
        rows, pooled = [], []
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False, truncation=True)["input_ids"]
            ids = ids[: (room - len(start) - len(first) - len(second) - 1) // 2]
            rows.append([*start, *first, *ids, *second, *ids, tokenizer.eos_token_id])
            pooled.append(len(ids) + 1)
        width = max(map(len, rows))
        tokens = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        with torch.inference_mode():
            hidden = model(input_ids=tokens.to(model.device), attention_mask=mask.to(model.device)).last_hidden_state
        return torch.stack(
            [
                hidden[index, len(row) - length : len(row)].float().mean(0)
                for index, (row, length) in enumerate(zip(rows, pooled, strict=True))
            ]
        ).cpu()

    def embed(texts: Sequence[str], progress: Progress | None) -> Tensor:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        vectors = torch.empty(len(texts), model.config.hidden_size)
        for begin in range(0, len(order), TEXTS_PER_BATCH):
            chosen = order[begin : begin + TEXTS_PER_BATCH]
            vectors[chosen] = embed_batch([texts[index] for index in chosen])
            if progress:
                progress(len(chosen))
        return vectors

    return Built(TextEncoder("Echo", f"echo-{first}-{second}-{model_fingerprint(embedder)}", embed))


PEERS = (Peer("Echo", "untrained", build, tuple({"frame": frame} for frame in FRAMES)),)
