from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from transformers import GPT2Config, OPTConfig

import models
from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from models.lm import LM, LMConfig
from models.lm.corpus import documents
from models.lm.objective import contrast
from models.shared.backbones import Continuation, LanguageConfig, freeze, language_model
from models.shared.generate import generate
from models.shared.text import BPETokenizer
from recipes.train import checkpoint
from recipes.train.progress import Progress


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make_sample(PRESETS["tiny"], "train", index) for index in range(48)]


@pytest.fixture(scope="module")
def tokenizer(samples: list[Sample]) -> BPETokenizer:
    return BPETokenizer.train([text for sample in samples for text in documents([sample], np.random.default_rng(0))], 600)


@pytest.fixture
def lm(tokenizer: BPETokenizer) -> LM:
    torch.manual_seed(0)
    language = LanguageConfig(width=32, depth=2, heads=2, hidden=64)
    model = LM(LMConfig(language=language, context=96, vocab_size=tokenizer.vocab_size), tokenizer)
    for parameter in model.parameters():  # the library's initialisation predicts the last token again and again
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_every_kind_of_document_occurs_and_names_what_was_said(samples: list[Sample]) -> None:
    rng = np.random.default_rng(0)
    found = Counter[str]()
    for _ in range(20):
        for sample, text in zip(samples, documents(samples, rng), strict=True):
            assert text
            found["conversation"] += "###assistant: " in text
            found["binding"] += "this is a" in text
            found["question"] += "question:" in text and text.count("\n") < 4 and "this is a" not in text
            found["pattern"] += text.count("\n") >= 5 and text.count("question:") == 3
            if text.count("question: what is this?") == 1:  # the answer is the name that one of the descriptions got
                assert f"\n{text.split('answer: ')[-1]}" in text.split("question:")[0], text
            if text.startswith("###human:"):
                assert text.endswith("###")
                assert any(caption in text for caption in sample.captions)
    assert min(found.values()) > 40, found


def test_documents_of_samples_without_text_are_empty_and_harmless(lm: LM) -> None:
    blank = [Sample(key=str(i), image=np.zeros((2, 2, 3), np.uint8)) for i in range(3)]
    assert set(documents(blank, np.random.default_rng(1))) == {""}
    losses = lm(lm.collate(blank, np.random.default_rng(1)))
    assert torch.isfinite(losses.total)


def test_the_loss_is_that_of_transformers(lm: LM, samples: list[Sample]) -> None:
    batch = lm.collate(samples[:8], np.random.default_rng(0))
    losses = lm(batch)
    labels = batch["ids"].clone()
    for row in labels:
        row[(row == lm.tokenizer.end).int().argmax() + 1 :] = -100
    reference = lm.language(input_ids=batch["ids"], labels=labels).loss
    assert losses.total.item() == pytest.approx(reference.item(), abs=1e-5)
    assert losses.chance["next token"] == pytest.approx(np.log(lm.config.vocab_size))


def test_documents_keep_their_order_though_those_of_like_length_are_read_together(lm: LM, samples: list[Sample]) -> None:
    ids = lm.collate(samples)["ids"]
    together = lm.encode({"ids": ids})
    for row, (nll, tokens) in enumerate(zip(together["nll"], together["tokens"], strict=True)):
        alone = lm.encode({"ids": ids[row : row + 1]})
        assert alone["tokens"].item() == tokens.item()
        assert alone["nll"].item() == pytest.approx(nll.item(), rel=1e-4)
    assert len(set(together["tokens"].tolist())) > 1


def test_simctg_pushes_apart_what_a_slow_derivation_says(tokenizer: BPETokenizer) -> None:
    """Section 3.1 of 2202.06417 in loops, on states that resemble each other: random ones are far enough apart already."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(3, 6, 8)) + 2 * rng.normal(size=(3, 1, 8))
    lengths, margin = (6, 4, 1), 0.5
    sums, pairs = [], []
    for document, length in zip(states, lengths, strict=True):
        found = [
            max(0.0, margin - _cosine(document[i], document[i]) + _cosine(document[i], document[j]))
            for i in range(length)
            for j in range(length)
            if i != j
        ]
        sums.append(sum(found))
        pairs.append(len(found))
    ours, theirs = torch.tensor(states, requires_grad=True), torch.tensor(states, requires_grad=True)
    real = torch.arange(6) < torch.tensor(lengths)[:, None]
    total, count = contrast(ours, real, margin)
    assert total.tolist() == pytest.approx(sums, abs=1e-5)
    assert count.tolist() == pairs == [30, 12, 0]
    assert 0 < sum(sums) / sum(pairs) < margin
    assert (np.array(sums[:2]) / pairs[:2] < margin).all()
    total.sum().backward()
    norms = [theirs[b, i] / theirs[b, i].norm() for b in range(3) for i in range(6)]
    slow = torch.stack(
        [
            (margin - 1 + norms[6 * b + i] @ norms[6 * b + j]).clamp(min=0)
            for b, length in enumerate(lengths)
            for i in range(length)
            for j in range(length)
            if i != j
        ]
    )
    slow.sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)  # type: ignore[arg-type]


def test_a_model_that_describes_reads_captions_and_adds_the_contrast(lm: LM, samples: list[Sample]) -> None:
    model = LM(replace(lm.config, corpus="captions", margin=0.9), lm.tokenizer)
    model.load_state_dict(lm.state_dict())
    batch = model.collate(samples[:8], np.random.default_rng(0))
    for sample, row in zip(samples, batch["ids"].tolist(), strict=False):
        assert lm.tokenizer.decode(row) in sample.captions
    losses, plain = model(batch), lm(batch)
    assert losses.terms["next token"].item() == pytest.approx(plain.total.item(), abs=1e-6)
    assert losses.total.item() == pytest.approx(sum(term.item() for term in losses.terms.values()), abs=1e-6)
    states = lm.language.model(batch["ids"][:, :-1]).last_hidden_state  # after the last norm: what the next token is read from
    read = batch["ids"][:, 1:] != lm.tokenizer.pad  # places that predict something
    total, pairs = contrast(states, read, 0.9)
    assert losses.terms["contrast"].item() == pytest.approx((total.sum() / pairs.sum()).item(), abs=1e-5)
    assert total.sum() > 0
    assert set(plain.terms) == {"next token"}


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_prompts_of_all_lengths_continue_as_transformers_would_alone(lm: LM) -> None:
    prompts = ["a red star", "question: how many objects are there? answer:", "", "###human: what do you see?"]
    written = lm.write(prompts, limit=12)
    for prompt, text in zip(prompts, written, strict=True):
        ids = torch.tensor([[1, *lm.tokenizer.encode(prompt)]])
        options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2, "suppress_tokens": [0, 1]}
        expected = lm.language.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :]
        assert text == lm.tokenizer.decode([token for token in expected.tolist() if token != 2])
    assert len(set(written)) > 1


@pytest.mark.parametrize("config", ["llama", "gpt2", "opt"])
def test_any_language_model_goes_on_from_embeddings_as_without_a_cache(config: str) -> None:
    """Llama has rotary positions, GPT-2 and OPT learned ones (OPT's are offset): padding on the left must not shift them."""
    torch.manual_seed(0)
    if config == "llama":
        model = language_model(LanguageConfig(width=32, depth=2, heads=2, hidden=48, vocab_size=50))
    else:
        from transformers import AutoModelForCausalLM

        sizes = {
            "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=64),
            "opt": OPTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=48, vocab_size=50, word_embed_proj_dim=32),
        }
        model = AutoModelForCausalLM.from_config(sizes[config], trust_remote_code=False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    freeze(model)
    embed = model.get_input_embeddings()
    prompts = [torch.randn(length, 32) for length in (1, 5, 9)]
    decoder, logits = Continuation.begin(model, *left_padded(prompts))
    written = generate(decoder, logits, end=2, limit=8)
    for prompt, tokens in zip(prompts, written, strict=True):
        text = prompt
        for token in [*tokens, *([2] if len(tokens) < 8 else [])]:
            with torch.no_grad():
                expected = int(model(inputs_embeds=text[None]).logits[0, -1].argmax())
            assert token == expected
            text = torch.cat([text, embed(torch.tensor([token])).detach()])


def test_a_frozen_model_lets_gradients_through_and_keeps_none() -> None:
    model = freeze(language_model(LanguageConfig(width=32, depth=1, heads=2, hidden=48, vocab_size=50)))
    prefix = torch.randn(1, 3, 32, requires_grad=True)
    model(inputs_embeds=prefix).logits.sum().backward()
    assert prefix.grad is not None
    assert prefix.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


def test_a_name_out_of_reach_says_what_to_do_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the variable was read at import
    with pytest.raises(ConnectionError, match="make train-lm"):
        language_model(LanguageConfig(source="nobody/has-this-model"), weights=True)


def test_tied_weights_are_saved_and_stay_tied(lm: LM, tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW(lm.parameters())
    lm(lm.collate([make_sample(PRESETS["tiny"], "train", 0)])).total.backward()
    optimizer.step()
    models.save(lm, tmp_path)
    checkpoint.save(tmp_path / "checkpoint.safetensors", lm, optimizer, Progress())
    found: Any = models.load(tmp_path)
    assert all(torch.equal(tensor, lm.state_dict()[name]) for name, tensor in found.state_dict().items())
    assert found.language.lm_head.weight is found.language.model.embed_tokens.weight
    checkpoint.load(tmp_path / "checkpoint.safetensors", found, torch.optim.AdamW(found.parameters()))


@pytest.mark.slow
def test_it_overfits_16_documents(tokenizer: BPETokenizer, samples: list[Sample]) -> None:
    torch.manual_seed(0)
    model = LM(replace(LMConfig.tiny(), vocab_size=tokenizer.vocab_size, language=LanguageConfig(width=64, depth=2, heads=2)), tokenizer)
    batch = model.collate(samples[:16], np.random.default_rng(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = model(batch).total
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
    assert all(parameter.grad is not None for parameter in model.parameters())


def left_padded(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings `[T_i, D]` of several prompts -> `[N, T, D]` with zeros on the left, and where they are real `[N, T]`."""
    longest = max(len(row) for row in rows)
    padded = rows[0].new_zeros(len(rows), longest, rows[0].shape[1])
    real = torch.zeros(len(rows), longest, dtype=torch.bool, device=padded.device)
    for place, row in enumerate(rows):
        if len(row):
            padded[place, -len(row) :] = row
            real[place, -len(row) :] = True
    return padded, real
