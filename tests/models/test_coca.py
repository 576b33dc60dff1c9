"""What CoCa promises: causality, captions, likelihoods, a loss that a slow derivation confirms, and gradients everywhere."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import models
from models.coca import CoCa, CoCaConfig
from models.coca.decoder import Writer
from models.coca.gpt2 import decoder_to_gpt2
from models.coca.objective import coca_loss
from models.shared.generate import Decoding
from models.shared.text import BPETokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from recipes.train.parallel import replicated
from recipes.train.step import backward
from tests.models.kit import assert_close, pictures, randomise, texts, tokenizer
from tests.processes import on_ranks

CAPTIONS = ("a red star", "a large blue circle above a red star", "a green moon", "a small solid brown square and a red arrow")
TOKENIZER = BPETokenizer.train(CAPTIONS, 400)
CONTEXT = 16
BATCH = 6


# ------------------------------------------------------------------------------------------------- architecture


def test_what_is_written_later_changes_nothing_before() -> None:
    model, ids = _model(), texts(4, CONTEXT, pad=TOKENIZER.pad, end=99)
    changed = ids.clone()
    changed[:, 7] = (ids[:, 7] + 5) % 90
    image = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(0))
    before, after = (model.text.look(model.text.read(rows)[0], image) for rows in (ids, changed))
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.isclose(before[:, 7:], after[:, 7:]).all(dim=-1).any()


@pytest.mark.parametrize("shifted", [False, True], ids=["correct mask", "released mask"])
def test_the_class_token_sees_the_whole_text_and_no_padding(shifted: bool) -> None:
    model = _model(shifted_mask=shifted)
    ids = model.collate.texts(CAPTIONS)
    ids = F.pad(ids, (0, CONTEXT - ids.shape[1]), value=TOKENIZER.pad)
    cls = model.text.read(ids)[1]
    for place in range(int((ids[0] != TOKENIZER.pad).sum())):
        changed = ids.clone()
        changed[0, place] = TOKENIZER.end if place == 0 else ids[0, place] + 1
        if TOKENIZER.end in changed[0, 1:] and place:
            assert not torch.isclose(model.text.read(changed)[1][0], cls[0]).all(), f"token {place} is not seen"
    with torch.no_grad():
        model.text.tokens.weight[TOKENIZER.pad] += 1
    assert torch.equal(model.text.read(ids)[1], cls) != shifted  # the mask of open_clip's weights lets one padding through


def test_texts_cut_to_the_longest_equal_full_length() -> None:
    model = _model()
    cut = model.collate.texts(CAPTIONS)
    full = F.pad(cut, (0, CONTEXT - cut.shape[1]), value=TOKENIZER.pad)
    assert cut.shape[1] < CONTEXT
    one, two = (model.encode({"pixels": pictures(4, 16), "ids": ids}) for ids in (cut, full))
    for name, feature in one.items():
        size = feature.abs().max().clamp(min=1.0)  # a sum over a text is dozens of nats, of which float32 keeps seven digits
        assert_close(feature / size, two[name] / size, name)


def test_every_parameter_learns_and_a_term_without_weight_is_not_computed() -> None:
    batch = _batch(_model())
    gradients = {}
    for name, weights in {"both": (1.0, 2.0), "contrast": (1.0, 0.0), "caption": (0.0, 1.0)}.items():
        model = _model(contrastive_weight=weights[0], captioning_weight=weights[1])
        losses = model(batch)
        losses.total.backward()
        gradients[name] = {parameter for parameter, value in model.named_parameters() if value.grad is not None and value.grad.any()}
        assert losses.terms.keys() == losses.chance.keys()
        assert ("caption" in losses.terms) == (weights[1] > 0)
        assert ("image_to_text" in losses.terms) == (weights[0] > 0)
    assert gradients["both"] == {name for name, _ in _model().named_parameters()} == gradients["contrast"] | gradients["caption"]
    assert not any(name.startswith(("text.multimodal", "text.head")) for name in gradients["contrast"])
    assert not any(name.startswith(("pooling.contrastive", "text.cls_token", "logit_scale")) for name in gradients["caption"])


def test_what_it_cannot_be_built_from_is_refused() -> None:
    with pytest.raises(ValueError, match="'avg'"):
        CoCa(replace(_config(), vision=replace(_config().vision, pool="avg")), TOKENIZER)
    with pytest.raises(ValueError, match="begin with a start token"):
        CoCa(_config(), tokenizer(pad=0, end=99))


# ---------------------------------------------------------------------------------------------------- objective


def test_the_loss_equals_a_slow_one() -> None:
    """Equations 2 to 4 one pair and one token at a time; the contrast is the mean of both directions."""
    model, weights = _model(), (0.7, 1.9)
    batch = _batch(model)
    features = model.encode(batch)
    scale = torch.tensor(3.0)
    losses = coca_loss(features, scale, contrastive=weights[0], captioning=weights[1], vocab_size=100)

    similarity = (scale * features["image"] @ features["text"].T).tolist()
    contrast = 0.0
    for i in range(BATCH):
        row = math.log(sum(math.exp(similarity[i][j]) for j in range(BATCH))) - similarity[i][i]
        column = math.log(sum(math.exp(similarity[j][i]) for j in range(BATCH))) - similarity[i][i]
        contrast += (row + column) / (2 * BATCH)
    log_p = model.text.look(model.text.read(batch["ids"])[0], model._look(batch["pixels"])[1]).log_softmax(dim=-1)
    each = []
    for row, ids in enumerate(batch["ids"].tolist()):
        each += [-log_p[row, place, ids[place + 1]].item() for place in range(ids.index(TOKENIZER.end))]
    caption = sum(each) / len(each)

    assert losses.terms["caption"].item() == pytest.approx(caption, abs=1e-5)
    assert losses.total.item() == pytest.approx(weights[0] * contrast + weights[1] * caption, abs=1e-5)
    assert losses.chance == {"image_to_text": math.log(BATCH), "text_to_image": math.log(BATCH), "caption": math.log(100)}


def test_a_model_that_knows_nothing_is_at_chance() -> None:
    model = _model()
    torch.nn.init.zeros_(model.text.head.weight)
    losses = model(_batch(model))
    assert losses.terms["caption"].item() == pytest.approx(losses.chance["caption"], abs=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_micro_batches_equal_the_full_batch(micro_batch: int) -> None:
    expected = _gradients(_batch(_model()), micro_batch=None)
    found = _gradients(_batch(_model()), micro_batch=micro_batch)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=0, msg=name)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Halves whose captions have different numbers of tokens: the mean of two means would be another loss."""
    on_ranks(_rank, tmp_path)
    expected = _gradients(_batch(_model()), micro_batch=None)
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=0, msg=name)


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    half = {name: rows[rank * BATCH // 2 :][: BATCH // 2] for name, rows in _batch(_model()).items()}
    save_file(_gradients(half, micro_batch=2), folder / f"{rank}.safetensors")
    dist.destroy_process_group()


def _gradients(batch: dict[str, Tensor], *, micro_batch: int | None) -> dict[str, Tensor]:
    model = _model().double()
    with patch.object(Tensor, "float", lambda x: x.double()):  # the way out of autocast, which would round here
        losses = backward(
            model,
            batch,
            micro_batch=micro_batch,
            autocast=contextlib.nullcontext(),
            passes=replicated(model) if dist.is_initialized() else None,
        )
    total = losses.total.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return {"total": total} | {name: parameter.grad.clone() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]


# ----------------------------------------------------------------------------------------- captions and likelihoods


def test_cached_captions_equal_uncached_ones_token_by_token() -> None:
    model = _model()
    tokens = model._look(pictures(5, 16))[1]
    writer, ids = Writer(model.text, tokens, CONTEXT), torch.full((5, 1), TOKENIZER.start)
    logits = writer.read(ids)
    for _ in range(CONTEXT - 1):
        whole = model.text.look(model.text.read(ids)[0], tokens)[:, -1]
        assert_close(logits, whole, f"logits after {ids.shape[1]} tokens")
        chosen = whole.argmax(dim=-1)
        assert torch.equal(logits.argmax(dim=-1), chosen)
        ids = torch.cat([ids, chosen[:, None]], dim=1)
        logits = writer.step(chosen)


@pytest.mark.parametrize("how", [Decoding(), Decoding(beams=4)], ids=["greedy", "beams"])
def test_captions_equal_those_of_transformers(how: Decoding) -> None:
    model, raw = _model(), _raw(9)
    theirs = decoder_to_gpt2(model.text, model.config.text, start=TOKENIZER.start or 0, pad=TOKENIZER.pad)
    tokens = model._look(torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in raw]))[1]
    ids = theirs.generate(
        torch.full((9, 1), TOKENIZER.start),
        attention_mask=torch.ones(9, 1, dtype=torch.long),
        encoder_hidden_states=F.layer_norm(tokens, (16,)),
        max_new_tokens=CONTEXT - 2,
        do_sample=False,
        suppress_tokens=[TOKENIZER.pad, TOKENIZER.start],
        renormalize_logits=True,
        **({"num_beams": how.beams, "early_stopping": "never"} if how.beams > 1 else {}),
    )
    rows = [[*row[1:], TOKENIZER.end] for row in ids.tolist()]
    expected = [TOKENIZER.decode(row[: row.index(TOKENIZER.end)]) for row in rows]
    assert model.caption(raw, how=how) == expected
    assert len(set(expected)) > 1


def test_captions_do_not_depend_on_the_batch_and_have_a_limit() -> None:
    model, raw = _model(), _raw(5)
    together = model.caption(raw)
    assert together == [model.caption([image])[0] for image in raw]
    with torch.no_grad():
        model.text.head.weight[TOKENIZER.end] = 0
        model.text.head.weight[TOKENIZER.pad] = 10 * model.text.head.weight[5]  # often likelier than any text
        model.text.head.weight[TOKENIZER.start] = -model.text.head.weight[TOKENIZER.pad]
    written: list[list[int]] = []
    with patch.object(type(TOKENIZER), "decode", lambda self, ids: written.append(list(ids)) or ""):
        model.caption(raw)
        model.caption(raw, how=Decoding(temperature=2.0, seed=1))
    assert not {TOKENIZER.pad, TOKENIZER.start, TOKENIZER.end} & {token for ids in written for token in ids}
    assert max(map(len, written)) == CONTEXT - 2


def test_prompts() -> None:
    model, raw = _model(), _raw(2)
    assert model.caption(raw, prompt="") == model.caption(raw)
    for prompt in ("a red star", "ünknown ☃"):
        assert all(text.startswith(prompt) for text in model.caption(raw, prompt=prompt))
    longest = "a" + " a" * (CONTEXT - 4)
    assert len(TOKENIZER.encode(longest)) == CONTEXT - 3
    assert all(text.startswith(longest) for text in model.caption(raw, prompt=longest))
    with pytest.raises(ValueError, match=f"prompt of {CONTEXT - 2} tokens leaves no room .* context of {CONTEXT}"):
        model.caption(raw, prompt=longest + " a")


def test_a_score_is_the_log_likelihood_of_the_text_and_its_end() -> None:
    model, raw = _model(), _raw(3)
    images, asked = [raw[0], raw[1], raw[0], raw[2], raw[2]], [*CAPTIONS, ""]
    with patch.object(model, "_look", wraps=model._look) as look:
        found = model.score(images, asked)
    assert len(look.call_args.args[0]) == 3  # each picture is looked at once
    assert found.dtype == torch.float32
    for value, image, text in zip(found.tolist(), images, asked, strict=True):
        tokens = model._look(torch.from_numpy(image).permute(2, 0, 1)[None])[1]
        ids = [TOKENIZER.start, *TOKENIZER.encode(text), TOKENIZER.end]
        log_p = 0.0
        for place in range(1, len(ids)):
            logits = model.text.look(model.text.read(torch.tensor([ids[:place]]))[0], tokens)[0, -1]
            log_p += logits.log_softmax(dim=-1)[ids[place]].item()
        assert value == pytest.approx(log_p, abs=1e-4)


def test_texts_longer_than_the_context_are_cut() -> None:
    model, raw = _model(), _raw(1)
    longer, longest = "a" * 300, "a" * 400
    assert model.score(raw, [longer]).item() == model.score(raw, [longest]).item()
    assert torch.equal(model.encode_text([longer]), model.encode_text([longest]))


def test_a_saved_model_says_the_same(tmp_path: Path) -> None:
    model, raw = _model(), _raw(3)
    models.save(model, tmp_path)
    loaded: Any = models.load(tmp_path)
    assert loaded.caption(raw) == model.caption(raw)
    assert torch.equal(loaded.score(raw, CAPTIONS[:3]), model.score(raw, CAPTIONS[:3]))
    assert torch.equal(loaded.encode_image(raw), model.encode_image(raw))


def test_it_overfits_16_pairs() -> None:
    """Both losses go to nothing, and greedy decoding gives every caption back."""
    captions = [f"a {colour} {shape}" for colour in ("red", "green", "blue", "grey") for shape in ("star", "moon", "heart", "cross")]
    words = BPETokenizer.train(captions, 400)
    torch.manual_seed(0)
    model = CoCa(_config(), words)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = {"pixels": pictures(16, 16), "ids": model.collate.texts(captions)}
    for _ in range(120):
        losses = model(batch)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert max(term.item() for term in losses.terms.values()) < 0.1
    assert model.eval().caption(_raw(16)) == captions


def _config(**changes: Any) -> CoCaConfig:
    vision = VisionConfig(width=24, depth=1, heads=2, image_size=16, patch_size=8, pool="none")
    text = TransformerConfig(width=16, depth=2, heads=2)
    config = replace(CoCaConfig.tiny(), vision=vision, text=text, multimodal_depth=2, queries=3, pooler_heads=2)
    return replace(config, embed_dim=16, context=CONTEXT, vocab_size=TOKENIZER.vocab_size, **changes)


def _model(**changes: Any) -> CoCa:
    """The same in every process."""
    torch.manual_seed(0)
    model = CoCa(_config(**changes), TOKENIZER)
    randomise(model, 0)
    return model.eval()


def _batch(model: CoCa) -> dict[str, Tensor]:
    return {"pixels": pictures(BATCH, 16), "ids": model.collate.texts([*CAPTIONS, "", "a red arrow"])}


def _raw(count: int) -> list[np.ndarray]:
    return list(pictures(count, 16).permute(0, 2, 3, 1).numpy())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_writes_and_scores_the_same() -> None:
    here, there, raw = _model(), _model().cuda(), _raw(5)
    for how in (Decoding(), Decoding(beams=3), Decoding(temperature=1.0, top_p=0.9)):
        assert there.caption(raw, how=how) == here.caption(raw, how=how)
    torch.testing.assert_close(there.score(raw[:4], CAPTIONS).cpu(), here.score(raw[:4], CAPTIONS), atol=1e-2, rtol=0)
