"""The head on the last hidden state gives the model's own logits, family by family."""

import pytest
import torch
import transformers
from conftest import TEXTS, BackboneMaker, family_configs

from text2token.backbone import BackboneSettings, load_embedder
from text2token.head import load_head


@pytest.mark.parametrize("family", sorted(family_configs(10)))
def test_head_equals_the_causal_models_logits(make_backbone: BackboneMaker, family: str) -> None:
    folder = str(make_backbone(family))
    embedder = load_embedder(BackboneSettings(folder, dtype="float32", max_length=64))
    head = load_head(embedder, folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for text in TEXTS[:3]:
        ids = embedder.preprocess([text])["input_ids"]
        with torch.inference_mode():
            expected = model(input_ids=ids).logits[0, -1]
            found = head(embedder.encode(text, convert_to_tensor=True))
        assert torch.allclose(found, expected, atol=1e-5), (found - expected).abs().max()
        assert expected.std() > 1e-2  # logits that are all alike would agree with anything
