"""Flamingo's blocks against transformers' Idefics, its language model untouched behind closed gates, and who sees which picture."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPTNeoXConfig, IdeficsConfig, LlamaConfig, OPTConfig
from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

import models
from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.pages import page, pairs_of
from data.scenes.world import PRESETS
from models.contract import IGNORE_INDEX
from models.flamingo import Flamingo, FlamingoConfig
from models.flamingo.collate import NOTHING, STATES
from models.flamingo.gated import GatedCrossAttention
from models.flamingo.resampler import PerceiverResampler
from models.lm.corpus import documents
from models.shared.backbones import LanguageConfig, decoder_layers, language_model
from models.shared.generate import Decoding
from models.shared.prefix import PADDING, SOFT
from models.shared.text import BPETokenizer
from models.shared.transformer import TransformerConfig
from tests.models.kit import assert_close, randomise

LANGUAGE = LanguageConfig(width=32, depth=2, heads=2, hidden=48)
TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Pairs and pages, with texts before and after their pictures."""
    return [*(make_sample(TINY, "train", index) for index in range(6)), *(page(TINY, "train", index) for index in range(10))]


@pytest.fixture(scope="module")
def words(samples: list[Sample]) -> BPETokenizer:
    texts = [text for sample in samples for text in (*documents([sample], np.random.default_rng(0)), *sample.texts)]
    return BPETokenizer.train(texts, 500)


def fresh(words: BPETokenizer, **changes: Any) -> Flamingo:
    torch.manual_seed(0)
    resampler = TransformerConfig(width=160, depth=1, heads=5, activation="squared_relu")
    settings: dict[str, Any] = {"vocab_size": words.vocab_size, "language": LANGUAGE, "heads": 2, "latents": 3, "resampler": resampler}
    return Flamingo(replace(FlamingoConfig.tiny(), **settings | changes), words).eval()


def build(words: BPETokenizer, **changes: Any) -> Flamingo:
    """With random weights and open gates."""
    model = fresh(words, **changes)
    randomise(model, 1)
    return model


# ------------------------------------------------------------------------------------------------------------ parity

IDEFICS: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "vision_config": {"embed_dim": 24, "num_attention_heads": 4, "intermediate_size": 96, "num_hidden_layers": 1},
}


def idefics(**changes: Any) -> IdeficsConfig:
    config = IdeficsConfig(**IDEFICS | changes)
    config._attn_implementation = "eager"
    return config


def copied(ours: nn.Linear, *theirs: nn.Linear) -> None:
    ours.weight.data = torch.cat([each.weight.data for each in theirs]).clone()


def test_the_resampler_is_that_of_idefics() -> None:
    theirs = IdeficsPerceiverResampler(idefics(), embed_dim=24, depth=2, n_heads=4, head_dim=6, n_latents=5)
    randomise(theirs, 0)
    ours = PerceiverResampler(TransformerConfig(24, 2, 4, activation="relu"), 5, 24)
    ours.latents.data = theirs.latents.data.clone()
    ours.norm.load_state_dict(theirs.layer_norm.state_dict())
    for (attention, mlp), (their_attention, their_mlp) in zip(ours.blocks, theirs.blocks, strict=True):
        attention.norm_media.load_state_dict(their_attention.context_layer_norm.state_dict())
        attention.norm_latents.load_state_dict(their_attention.latents_layer_norm.state_dict())
        copied(attention.q, their_attention.q_proj)
        copied(attention.kv, their_attention.k_proj, their_attention.v_proj)
        copied(attention.proj, their_attention.output_proj)
        mlp[0].load_state_dict(their_mlp.ln.state_dict())
        copied(mlp[1], their_mlp.fc)
        copied(mlp[3], their_mlp.c_proj)
    media = torch.randn(3, 7, 24)
    mine, reference = media.clone().requires_grad_(), media.clone().requires_grad_()
    found, expected = ours(mine), theirs(reference)
    assert_close(found, expected, "latents")
    weights = torch.randn(found.shape)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_close(mine.grad, reference.grad, "gradient of the features")
    assert_close(ours.latents.grad, theirs.latents.grad, "gradient of the latents")
    first, their_first = ours.blocks[0][0], theirs.blocks[0][0]
    assert_close(first.kv.weight.grad, torch.cat([their_first.k_proj.weight.grad, their_first.v_proj.weight.grad]), "gradient of keys")


SEEN = torch.tensor([[-1, -1, 0, 0, 1, 1, 2], [0, 0, 0, 1, 1, 1, 1]])


@pytest.mark.parametrize("every", [False, True], ids=["last picture", "all pictures"])
def test_the_gated_block_is_that_of_idefics(every: bool) -> None:
    """With its norm and its MLP, which are Llama's and not the paper's."""
    theirs = IdeficsGatedCrossAttentionLayer(idefics(alpha_initializer="ones"), layer_idx=0)
    randomise(theirs, 0)
    ours = GatedCrossAttention(32, 24, 4, every=every)
    ours.norm = copy.deepcopy(theirs.input_layernorm)
    ours.feed_forward = nn.Sequential(copy.deepcopy(theirs.post_attention_layernorm), copy.deepcopy(theirs.mlp))
    copied(ours.attention.q, theirs.cross_attn.q_proj)
    copied(ours.attention.kv, theirs.cross_attn.k_proj, theirs.cross_attn.v_proj)
    copied(ours.attention.proj, theirs.cross_attn.o_proj)
    ours.attention_gate.data = theirs.alpha_cross_attn.data[0].clone()
    ours.feed_forward_gate.data = theirs.alpha_dense.data[0].clone()
    states, media = torch.randn(2, 7, 32), torch.randn(2, 3, 5, 24)
    picture = torch.arange(3).repeat_interleave(5)
    sees = picture <= SEEN[:, :, None] if every else picture == SEEN[:, :, None]
    mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[:, None]
    mine, reference = states.clone().requires_grad_(), states.clone().requires_grad_()
    ours.attention.look([media], SEEN)
    found = ours(mine)
    expected = theirs(
        reference,
        image_hidden_states=media.flatten(1, 2),
        image_attention_mask=mask,
        cross_attention_gate=(SEEN >= 0).float(),
    )
    assert_close(found, expected, "states")
    weights = torch.randn(found.shape)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_close(mine.grad, reference.grad, "gradient of the states")
    assert_close(ours.attention.q.weight.grad, theirs.cross_attn.q_proj.weight.grad, "gradient of queries")
    assert_close(ours.attention_gate.grad, theirs.alpha_cross_attn.grad[0], "gradient of the gate")
    assert_close(ours.feed_forward_gate.grad, theirs.alpha_dense.grad[0], "gradient of the other gate")


def test_squared_relu_is_the_activation() -> None:
    block = GatedCrossAttention(8, 8, 2)
    x = torch.tensor([-2.0, 0.5, 3.0])
    assert block.feed_forward[2](x).tolist() == [0.0, 0.25, 9.0]
    assert [module.bias for module in block.modules() if isinstance(module, nn.Linear)] == [None] * 5


# ----------------------------------------------------------------------------------------------------- closed gates


def alone(model: Flamingo, batch: dict[str, Tensor]) -> Tensor:
    """The logits of the language model without any block, of a model of the same weights that has none."""
    plain = language_model(replace(model.config.language, vocab_size=model.config.vocab_size))
    plain.load_state_dict(model.language.state_dict())
    mask = (batch["ids"] != PADDING).long()
    return plain.eval()(inputs_embeds=model._embed(batch["ids"]), attention_mask=mask).logits


def test_with_closed_gates_the_language_model_is_untouched_bitwise(words: BPETokenizer, samples: list[Sample]) -> None:
    model = fresh(words)
    batch = model.collate(samples, np.random.default_rng(0))
    with torch.no_grad():
        media = model._media(batch["pixels"].flatten(0, 1)).unflatten(0, batch["pixels"].shape[:2])
        assert torch.equal(model._read(batch["ids"], batch["seen"], media), alone(model, batch))
        for block in model.blocks:
            block.attention_gate.fill_(0.01)
        assert not torch.equal(model._read(batch["ids"], batch["seen"], media), alone(model, batch))


def test_at_first_only_the_gates_and_the_tag_learn(words: BPETokenizer, samples: list[Sample]) -> None:
    model = fresh(words)
    model(model.collate(samples, np.random.default_rng(0))).total.backward()
    moving = {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.abs().max() > 0}
    gates = {f"blocks.{number}.{gate}" for number in range(2) for gate in ("attention_gate", "feed_forward_gate")}
    assert moving == gates | {"tag"}


def test_without_reading_blocks_the_language_model_works_as_ever(words: BPETokenizer) -> None:
    model = build(words)
    ids = torch.tensor([[3, 4, 5]])
    plain = language_model(replace(model.config.language, vocab_size=model.config.vocab_size))
    plain.load_state_dict(model.language.state_dict())
    with torch.no_grad():
        model.caption([np.zeros((64, 64, 3), np.uint8)])
        model.score([np.zeros((64, 64, 3), np.uint8)], ["a star"])
        assert torch.equal(model.language(input_ids=ids).logits, plain.eval()(input_ids=ids).logits)


def test_frozen_parts_stay_bitwise_and_the_others_learn(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(words)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    for step in range(3):
        model(model.collate(samples, np.random.default_rng(step))).total.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("visual.", "language."))
        assert parameter.requires_grad != frozen, name
        assert torch.equal(parameter, before[name]) == frozen, name


@pytest.mark.parametrize("kind", [LlamaConfig, GPT2Config, OPTConfig, GPTNeoXConfig])
def test_blocks_stand_in_front_of_the_layers_of_any_decoder(words: BPETokenizer, kind: type) -> None:
    import json

    own = {"gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 2}, "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48}}.get(kind.model_type, {})
    usual = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48} if kind is not GPT2Config else {}
    described = json.loads(kind(**usual, **own, vocab_size=words.vocab_size).to_json_string()) | {"model_type": kind.model_type}
    model = build(words, language=LanguageConfig(architecture=json.dumps(described)), every=2, context=24)
    assert len(model.blocks) == 2
    assert len(decoder_layers(model.language)) == 4
    images = [page(TINY, "pages", 0).image, page(TINY, "pages", 1).image]
    one, other = model.score(images, ["a red star"] * 2).tolist()
    assert one != other  # both blocks read their picture
    hooks = [bool(layer._forward_pre_hooks) for layer in decoder_layers(model.language)]
    assert hooks == [False, True, False, True]
    assert len(model.caption(images)) == 2


# ------------------------------------------------------------------------------------------------ who sees which picture


def sequences(model: Flamingo, parts: list[str | int]) -> dict[str, Tensor]:
    images = [page(TINY, "pages", 0).images[part] for part in parts if isinstance(part, int)]
    return model.collate([Sample("0", images[0], others=tuple(images[1:]), page=tuple(parts))])


@pytest.mark.parametrize("every", [False, True], ids=["last picture", "all pictures"])
def test_a_text_sees_its_picture_only_and_later_ones_never(words: BPETokenizer, every: bool) -> None:
    """Directly: without the language model's own attention, through which earlier pictures reach later texts."""
    model = build(words, all_pictures=every)
    batch = sequences(model, [0, "a red star", 1, "a moon", 2, "two"])
    media = torch.randn(1, 3, 3, 160, requires_grad=True)
    block = model.blocks[0]
    block.attention.look([media], batch["seen"])
    states = torch.randn(1, batch["ids"].shape[1], 32)
    found = block(states)[0]
    for place, (token, own) in enumerate(zip(batch["ids"][0].tolist(), batch["seen"][0].tolist(), strict=True)):
        (gradient,) = torch.autograd.grad(found[place].sum(), media, retain_graph=True)
        sees = [number for number in range(3) if gradient[0, number].abs().max() > 0]
        assert sees == ([] if own == NOTHING else list(range(own + 1)) if every else [own]), (place, token)
    tags = [place for place, token in enumerate(batch["ids"][0].tolist()) if token == SOFT]
    assert batch["seen"][0, tags].tolist() == [0, 1, 2]
    assert batch["seen"][0, 0] == NOTHING  # the start token


def test_earlier_pictures_reach_later_texts_through_the_language_model(words: BPETokenizer) -> None:
    model = build(words)
    batch = sequences(model, [0, "a red star", 1, "a moon"])
    second = batch["ids"][0].tolist().index(SOFT, 2)
    for number, changed in ((0, [True, True]), (1, [False, True])):
        media = torch.randn(1, 2, 3, 160, generator=torch.Generator().manual_seed(0))
        before = model._read(batch["ids"], batch["seen"], media)[0]
        media[0, number] += 1
        after = model._read(batch["ids"], batch["seen"], media)[0]
        moved = (after != before).any(dim=1)
        assert [bool(moved[:second].any()), bool(moved[second:].any())] == changed


def test_texts_before_any_picture_see_none_and_nothing_is_nan(words: BPETokenizer) -> None:
    model = build(words, context=24)
    row, shown = model._row(["answer in one word.", page(TINY, "pages", 0).image, "a star", page(TINY, "pages", 0).images[1]])
    assert set(row.seen[: row.ids.index(SOFT)]) == {NOTHING}
    assert len(shown) == 2
    assert all(isinstance(text, str) for text in model.complete([["only words"], [], [page(TINY, "pages", 0).image]]))
    images = [np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)]
    assert model.score(images, ["a", "a"]).isfinite().all()


# ------------------------------------------------------------------------------------------------------------ collate


def test_pages_are_read_in_order_and_texts_before_pictures_see_the_next(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(words)
    batch = model.collate(samples)
    both = set()
    for row, sample in enumerate(samples):
        if not sample.page:
            continue
        ids, labels, seen = (batch[name][row].tolist() for name in ("ids", "labels", "seen"))
        texts = [[]]
        for label, picture in zip(labels, seen, strict=True):
            if label == IGNORE_INDEX:
                continue
            if label == words.end:
                texts[-1] = (words.decode(texts[-1]), picture)
                texts.append([])
            else:
                texts[-1].append(label)
        assert texts[:-1] == [(text, number) for number, text in pairs_of(sample)]
        assert ids.count(SOFT) == len(sample.images) == batch["pictures"][row]
        assert torch.equal(batch["pixels"][row, : len(sample.images)], model.collate.transform(list(sample.images)))
        assert batch["paged"][row]
        both.add(sample.extra["before"])
    assert both == {True, False}


def test_pairs_are_captions_or_answers(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(words, pages=0.0)
    batch = model.collate(samples, np.random.default_rng(0))
    assert not batch["paged"].any()
    assert batch["pictures"].tolist() == [1] * len(samples)
    kinds = set()
    for sample, ids, labels in zip(samples, batch["ids"].tolist(), batch["labels"].tolist(), strict=True):
        said = words.decode([token for token in labels if token not in (IGNORE_INDEX, words.end)])
        read = words.decode([token for token, label in zip(ids, labels, strict=True) if label == IGNORE_INDEX and token >= 0])
        assert ids[:2] == [words.start, SOFT]
        if read:
            assert (read, said) in {(f"question: {each.question} answer:", each.answer) for each in sample.questions}
        else:
            assert said in sample.captions
        kinds.add(bool(read))
    assert kinds == {True, False}


@pytest.mark.parametrize("context", [2, 5, 9, 14, 30])
@pytest.mark.parametrize("pictures", [1, 2, 5])
def test_long_pages_are_cut_and_never_see_what_is_cut_off(words: BPETokenizer, samples: list[Sample], context: int, pictures: int) -> None:
    model = build(words, context=context, pictures=pictures)
    long = [replace(sample, page=tuple(each for _ in range(3) for each in sample.page)) for sample in samples if sample.page]
    batch = model.collate([*samples, *long], np.random.default_rng(0))
    pages = batch["paged"]
    assert int((batch["ids"] != PADDING).sum(dim=1)[pages].max()) <= context
    assert (batch["seen"].max(dim=1).values < batch["pictures"]).all()
    assert int(batch["pictures"].max()) <= pictures
    assert model(batch).total.isfinite()


def test_a_page_of_text_alone_and_a_page_without_labels(words: BPETokenizer) -> None:
    model = build(words)
    image = page(TINY, "pages", 0).image
    batch = model.collate([Sample("0", image, page=("no picture is read",)), Sample("1", image, page=(0,))])
    assert model(batch).total.isfinite()
    nothing = model.collate([Sample("1", image, page=(0,))])
    assert model(nothing).total == 0


def test_states_that_were_computed_before_give_the_same_loss(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(words)
    known = model.precompute(samples)
    assert all(len(sample.extra[STATES]) == len(sample.images) for sample in known)
    one, other = (model(model.collate(each, np.random.default_rng(1))) for each in (samples, known))
    assert "states" in model.collate(known)
    assert float(one.total) == pytest.approx(float(other.total), rel=2e-3)  # in half precision


def test_the_loss_is_the_mean_by_hand(words: BPETokenizer, samples: list[Sample]) -> None:
    """Sequence by sequence, token by token, without padding, and weighted by kind."""
    model = build(words, pairs_weight=0.3)
    batch = model.collate(samples, np.random.default_rng(2))
    losses = model(batch)
    totals: dict[bool, list[float]] = {True: [], False: []}
    for row in range(len(samples)):
        real = int((batch["ids"][row] != PADDING).sum())
        ids, seen = batch["ids"][row : row + 1, :real], batch["seen"][row : row + 1, :real]
        with torch.no_grad():
            media = model._media(batch["pixels"][row, : batch["pictures"][row]])[None]
            log_p = model._read(ids, seen, media)[0].log_softmax(-1)
        labels = batch["labels"][row, :real].tolist()
        found = [-float(log_p[place - 1, label]) for place, label in enumerate(labels) if label != IGNORE_INDEX]
        totals[bool(batch["paged"][row])] += found
    assert float(losses.terms["pages"]) == pytest.approx(np.mean(totals[True]), abs=1e-4)
    assert float(losses.terms["pairs"]) == pytest.approx(np.mean(totals[False]), abs=1e-4)
    assert float(losses.total) == pytest.approx(np.mean(totals[True]) + 0.3 * np.mean(totals[False]), abs=1e-4)


# ------------------------------------------------------------------------------------------------------- capabilities


def test_generation_is_greedy_and_independent_of_the_batch(words: BPETokenizer) -> None:
    model = build(words, context=24)
    images = page(TINY, "pages", 3).images
    prompts: list[list[Any]] = [[images[0], "\na red star\n", images[1], "\n"], [images[2]], [images[3], "a", images[4], "b", images[0]]]
    together = model.complete(prompts)
    assert together == [model.complete([prompt])[0] for prompt in prompts]
    row, shown = model._row(prompts[0])
    media = model._look(shown)[None]
    ids, seen, said = list(row.ids), list(row.seen), []
    never = {words.pad, words.start}
    while len(said) < model.config.context:
        with torch.no_grad():
            logits = model._read(torch.tensor([ids]), torch.tensor([seen]), media)[0, -1]
        logits[list(never)] = float("-inf")
        token = int(logits.argmax())
        if token == words.end:
            break
        said.append(token)
        ids.append(token)
        seen.append(seen[-1])
    assert together[0] == words.decode(said).split("\n")[0].strip()


def test_beams_follow_their_pictures(words: BPETokenizer) -> None:
    model = build(words, context=24)
    images = page(TINY, "pages", 3).images
    how = Decoding(beams=3)
    assert model.caption(images, how=how) == [model.caption([image], how=how)[0] for image in images]


def test_likelihoods_add_up_and_depend_on_the_picture(words: BPETokenizer) -> None:
    model = build(words)
    images, texts = page(TINY, "pages", 3).images[:2], ["a red star", "two moons"]
    for row, image in enumerate(images):
        for text in texts:
            batch = model.collate([Sample("0", image, captions=(text,))])
            with torch.no_grad():
                expected = -float(model.encode(batch)["nll"])
            assert float(model.score([image], [text])) == pytest.approx(expected, abs=1e-4)
        found = model.score([image] * 2 + [images[1 - row]], [*texts, texts[0]])
        assert float(found[0]) != float(found[2])
    question = "what colour is the star?"
    row = model.collate.pair("red", question)
    asked = [token for token, label in zip(row.ids, row.labels, strict=True) if label == IGNORE_INDEX and token >= 0]
    assert words.decode(asked) == f"question: {question} answer:"
    expected = model.score([images[0]], [f"question: {question} answer: red"]) - _of_prompt(
        model, images[0], f"question: {question} answer:"
    )
    assert float(model.answer_likelihood([images[0]], [question], ["red"])) == pytest.approx(float(expected), abs=1e-3)


def _of_prompt(model: Flamingo, image: np.ndarray, text: str) -> Tensor:
    """log p of a text without its end."""
    row = model.collate.pair(text)
    row.cut(len(row.ids) - 1)
    with torch.no_grad():
        log_p = model._read(torch.tensor([row.ids]), torch.tensor([row.seen]), model._look([image])[None])[0].log_softmax(-1)
    return sum(log_p[place - 1, label] for place, label in enumerate(row.labels) if label != IGNORE_INDEX)


def test_answers_continue_the_question(words: BPETokenizer) -> None:
    model = build(words, context=40)
    image, question = page(TINY, "pages", 3).image, "how many objects are there?"
    assert model.answer([image], [question]) == model.complete([[image, f"\nquestion: {question} answer:"]])
    assert model.answer([], []) == model.caption([]) == model.complete([]) == []


def test_a_copy_has_blocks_of_its_own_and_a_saved_model_comes_back(words: BPETokenizer, samples: list[Sample], tmp_path: Any) -> None:
    model = build(words)
    other = copy.deepcopy(model)
    batch = model.collate(samples, np.random.default_rng(0))
    expected = float(model(batch).total)
    with torch.no_grad():
        for reader in model.readers:
            reader.proj.weight.zero_()
    assert float(other(batch).total) == pytest.approx(expected, abs=1e-6)
    models.save(other, tmp_path / "run")
    assert float(models.load(tmp_path / "run")(batch).total) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "differs"),
    [({"gated": False}, True), ({"bridge": "mlp"}, True), ({"tune_language": True}, False), ({"all_pictures": True}, True)],
)
def test_the_papers_comparisons(words: BPETokenizer, samples: list[Sample], changes: dict[str, Any], differs: bool) -> None:
    model = build(words, **changes)
    batch = model.collate(samples, np.random.default_rng(0))
    losses = model(batch)
    losses.total.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is not None for parameter in trained.values())
    assert any(name.startswith("language.") for name in trained) == ("tune_language" in changes)
    assert (float(losses.total) != float(build(words)(batch).total)) == differs


def test_bad_values_are_refused(words: BPETokenizer) -> None:
    with pytest.raises(ValueError, match=r"--model\.every is 0, expected 1"):
        build(words, every=0)
    language = language_model(replace(LANGUAGE, vocab_size=20))
    language.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match="no list of 7 layers"):
        decoder_layers(language)
