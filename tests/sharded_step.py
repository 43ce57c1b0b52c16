"""Two optimiser steps, by one process or by several that hold the weights in shards (FSDP2); for tests/test_processes.py.

    python tests/sharded_step.py BACKBONE OUTPUT
    torchrun --standalone --nproc-per-node 2 tests/sharded_step.py BACKBONE OUTPUT

The trainer shards on GPUs only, so this shards by hand, over gloo. OUTPUT gets the losses, and the trained weights as a
checkpoint holds them. Between the steps the weights go into a checkpoint, are spoilt, and come back from it.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from text2token.model.adapters import add_lora
from text2token.model.backbone import load_embedder, transformer_of
from text2token.model.head import load_head
from text2token.recipe import BackboneSettings, LoraSettings
from text2token.train.objective import TokenTargetLoss
from text2token.train.processes import together
from text2token.train.stage import load_trainable, trainable_weights

TEXTS = ["a girl brushes her hair", "wait until the thread ends", "coffee prices rose sharply", "close the socket"]


def main(backbone: str, output: str) -> None:
    """Train on every so-manieth text, and write what came out by the first process."""
    torch.set_num_threads(1)
    processes = together()
    embedder = load_embedder(BackboneSettings(backbone, dtype="float32"))
    add_lora(embedder, LoraSettings(rank=4), seed=0)
    model = TokenTargetLoss(embedder, load_head(embedder, backbone), contrast=0.0)
    sharded = processes.count > 1
    if sharded:
        mesh = init_device_mesh("cpu", (processes.count,))
        decoder = transformer_of(embedder).model.get_base_model()
        for layer in decoder.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(decoder, mesh=mesh)
        assert all(isinstance(value, DTensor) for value in decoder.parameters())
    own = TEXTS[processes.rank :: processes.count]
    ids = torch.arange(len(TEXTS))[processes.rank :: processes.count, None] + torch.tensor([[5, 50, 500]])
    labels = {"token_ids": ids, "weights": torch.tensor([[0.5, 0.3, 0.2]]).expand(len(own), 3), "rows": ids[:, 0]}
    optimiser = torch.optim.AdamW([value for value in embedder.parameters() if value.requires_grad], lr=1e-2)
    losses = []
    for _ in range(2):
        loss = model([embedder.preprocess(own)], labels)
        losses.append(loss.detach().clone())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        saved = {name: value.clone() for name, value in trainable_weights(embedder).items()}
        load_trainable(embedder, {name: torch.zeros_like(value) for name, value in saved.items()})
        load_trainable(embedder, saved)
    mean = torch.stack(losses)
    if sharded:
        torch.distributed.all_reduce(mean)
    if processes.first:
        save_file({**saved, "losses": mean / processes.count}, Path(output))


if __name__ == "__main__":
    main(*sys.argv[1:])
