"""Every model that reads text, with tokenizers that have other special tokens than the embedded data's: one token for start, end and
padding (GPT-2), a class token and a separator (BERT), no start (SigLIP, T5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from models.lm import LM, LMConfig
from models.shared.backbones import LanguageConfig
from models.shared.text import HubTokenizer, layout
from tests.recipes.kit import narrow
from tests.stand_ins import KINDS

READERS = sorted(name for name, each in models.all_models().items() if each.reads_text())
TEXTS = ["a red circle", "two blue squares left of a green star"]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make_sample(PRESETS["tiny"], "train", index) for index in range(4)]


@pytest.fixture(scope="module")
def tokenizers(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> dict[str, HubTokenizer]:
    folder, said = tmp_path_factory.mktemp("tokenizers"), [text for sample in samples for text in sample.captions]
    for kind in ("gpt2", "bert", "siglip"):
        KINDS[kind](said * 20).save_pretrained(folder / kind)
    return {kind: HubTokenizer(str(folder / kind)) for kind in ("gpt2", "bert", "siglip")}


@pytest.mark.parametrize("kind", ["gpt2", "bert", "siglip"])
@pytest.mark.parametrize("name", READERS)
def test_a_batch_is_learned_from_and_texts_are_told_apart(
    name: str, kind: str, tokenizers: dict[str, HubTokenizer], samples: list[Sample]
) -> None:
    cls, tokenizer = models.model_class(name), tokenizers[kind]
    config = cls.configured(narrow(cls.Config.tiny()), tokenizer=tokenizer, split=None)  # type: ignore[arg-type]
    torch.manual_seed(0)
    if tokenizer.start is None and name in ("asif", "coca", "lm", "lockedmagic", "magic", "virtex", "virtextokens"):
        with pytest.raises(ValueError, match=r"start token, and the tokenizer .* has none"):
            cls(config, tokenizer)
        return
    model: Any = cls(config, tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():  # blocks that start as the identity would hide what they read
            parameter.add_(0.05 * torch.randn_like(parameter))
    losses = model(model.collate(samples, np.random.default_rng(0)))
    assert losses.total.isfinite()
    assert bool(losses.total > 0) == (model.paradigm != "training-free")
    model.eval()
    if hasattr(model, "encode_text") and model.paradigm != "training-free":
        alone, together = (torch.cat([model.encode_text([text]) for text in TEXTS]), model.encode_text([*TEXTS, "a"]))
        assert torch.allclose(alone, together[:2], atol=1e-4), "a text's feature depends on its neighbours' padding"
        assert not torch.allclose(together[0], together[1], atol=1e-3), "both texts are read as one"


def test_a_document_is_learned_up_to_its_end_where_the_start_is_the_same_token(tokenizers: dict[str, HubTokenizer]) -> None:
    tokenizer = tokenizers["gpt2"]
    language = LanguageConfig(width=32, depth=1, heads=2, hidden=48, context=64)
    model = LM(LMConfig(language=language, context=64, vocab_size=tokenizer.vocab_size, margin=0.5), tokenizer).eval()
    texts = [*TEXTS, ""]
    features = model.encode({"ids": layout(tokenizer, texts, 64)})
    for row, text in enumerate(texts):
        ids = torch.tensor([[tokenizer.start, *tokenizer.encode(text), tokenizer.end]])
        mean = model.language(input_ids=ids, labels=ids).loss
        assert features["tokens"][row] == ids.shape[1] - 1
        assert features["nll"][row].item() == pytest.approx(mean.item() * (ids.shape[1] - 1), rel=1e-4)
        assert features["pairs"][row] == (ids.shape[1] - 1) * (ids.shape[1] - 2)


def test_a_mask_of_its_own_is_used_and_none_is_added(tokenizers: dict[str, HubTokenizer], tmp_path: Path) -> None:
    for name in ("flava", "maskvlm"):
        cls = models.model_class(name)
        for kind, added in (("bert", 0), ("gpt2", 1)):
            tokenizer = tokenizers[kind]
            model: Any = cls(cls.configured(narrow(cls.Config.tiny()), tokenizer=tokenizer, split=None), tokenizer)  # type: ignore[arg-type]
            assert len(model.text.tokens.weight) == tokenizer.vocab_size + added
            assert model.collate.mask == (tokenizer.vocab_size if tokenizer.mask is None else tokenizer.mask)
