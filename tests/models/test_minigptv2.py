"""MiniGPT-v2: its template, tasks and boxes, what it learns, and its vectors; the loss by hand."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data.objects import overlap
from data.sample import Object, Sample
from data.scenes.build import make_sample
from data.scenes.language import agreement
from data.scenes.world import PRESETS
from models.blip2 import BLIP2, BLIP2Config
from models.contract import IGNORE_INDEX
from models.lm import LM, LMConfig
from models.lm.corpus import documents
from models.minigpt4 import MiniGPTv2, MiniGPTv2Config
from models.minigpt4.tasks import STAGES, TASKS, turns
from models.minigpt4.v2 import LLAMA_2
from models.shared.backbones import LanguageConfig, language_model
from models.shared.boxes import box_text, boxes_in
from models.shared.chat import Reply, Template, Turn
from models.shared.images import ImageTransform, normalise
from models.shared.prefix import SOFT, embed
from models.shared.text import BPETokenizer
from models.shared.vision import image_states
from tests.models.kit import assert_close, randomise, tokenizer

LANGUAGE = LanguageConfig(width=32, depth=2, heads=2, hidden=48)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make_sample(PRESETS["tiny"], "train", index) for index in range(60)]


@pytest.fixture(scope="module")
def words(samples: list[Sample]) -> BPETokenizer:
    return BPETokenizer.train([text for sample in samples for text in documents([sample], np.random.default_rng(0))], 500)


def build(words: BPETokenizer, **changes: Any) -> MiniGPTv2:
    torch.manual_seed(0)
    base = MiniGPTv2Config.tiny()
    small: dict[str, Any] = {
        "vision": replace(base.vision, width=32, depth=1, heads=2),
        "language": LANGUAGE,
        "vocab_size": words.vocab_size,
    }
    model = MiniGPTv2(replace(base, **small | changes), words)
    randomise(model, 1)
    return model.eval()


def test_every_question_begins_anew_and_every_answer_ends(words: BPETokenizer) -> None:
    template = Template(words, places=2, context=60, signs=LLAMA_2)
    ids, labels = template.conversation([Turn("[vqa] what is it?", "a star"), Turn("[refer] the star", "{<1><2><3><4>}")])
    text = words.fast.decode([token for token in ids if token != SOFT], skip_special_tokens=False)
    assert text.replace(" ", "") == (
        "<start>[inst]<img></img>[vqa]whatisit?[/inst]astar<end><start>[inst][refer]thestar[/inst]{<1><2><3><4>}<end>"
    )
    learned = words.fast.decode([label for label in labels if label != IGNORE_INDEX], skip_special_tokens=False)
    assert learned.replace(" ", "") == "astar<end>{<1><2><3><4>}<end>"
    assert ids.count(SOFT) == 2


def test_tasks_are_true(samples: list[Sample]) -> None:
    rng, found = np.random.default_rng(0), Counter[str]()
    for sample in samples:
        height, width = sample.image.shape[:2]
        by_name = {f"{each.attributes['colour']} {each.name}": each for each in sample.objects}
        for task, make in TASKS.items():
            turn = make(sample, rng)
            assert turn is not None
            found[task] += 1
            if task == "caption":
                assert turn.reply in sample.captions
            if task == "refer":
                match = re.fullmatch(r"give me the location of the (.+)", turn.request)
                assert match is not None
                assert turn.reply == box_text(by_name[match[1]].box, height, width)
            if task == "identify":
                (box,) = boxes_in(turn.request, height, width)
                assert max(by_name, key=lambda name, box=box, by=by_name: overlap(by[name].box, box)) == turn.reply  # type: ignore[misc]
            if task == "detection":
                there = [name for name, each in by_name.items() if each.name == turn.request]
                assert re.findall(r"<p>(.+?)</p>", turn.reply) == there
            if task == "grounding":
                phrases = re.findall(r"<p>(an? .+?)</p> (\{.+?\})", turn.reply)
                assert len(phrases) == len(sample.objects)
                for phrase, box in phrases:
                    assert box == box_text(by_name[phrase.split(" ", 1)[1]].box, height, width)
                assert agreement(", ".join(phrase for phrase, _ in phrases), sample) == 1
    assert min(found.values()) == len(samples)


def test_stages_mix_tasks_and_name_them(samples: list[Sample]) -> None:
    rng = np.random.default_rng(0)
    for mixture in STAGES.values():
        found = Counter[str]()
        for sample in samples * 10:
            first = turns(sample, rng, mixture)[0]
            match = re.match(r"\[(\w+)\] ", first.request)
            found[match[1] if match else "conversation"] += 1
            plain = turns(sample, rng, {"refer": 1}, identifiers=False)[0]
            assert not plain.request.startswith("[")
        total = sum(mixture.values())
        assert set(found) == set(mixture)
        for task, weight in mixture.items():
            assert found[task] / found.total() == pytest.approx(weight / total, abs=0.07), task


def test_what_the_annotations_do_not_allow_is_not_asked() -> None:
    rng, image = np.random.default_rng(0), np.zeros((40, 80, 3), np.uint8)
    photo = Sample("a", image, captions=("a dog",))
    for mixture in STAGES.values():
        for _ in range(20):
            assert {turn.reply for turn in turns(photo, rng, mixture)} == {"a dog"}
    two = Sample("b", image, objects=(Object("dog", (0, 0, 8, 8)), Object("dog", (40, 0, 80, 20))))
    assert TASKS["refer"](two, rng) is None  # which dog?
    found = TASKS["detection"](two, rng)
    assert found == Turn("dog", "<p>dog</p> {<0><0><10><20>} <p>dog</p> {<50><0><100><50>}")


def test_four_neighbours_of_a_row_become_one_vector_and_the_loss_is_that_of_the_answer(words: BPETokenizer, samples: list[Sample]) -> None:
    """By hand: strips of four, the layer, the sequence, and the language model with merged updates."""
    model = build(words)
    batch = model.collate(samples[:5], np.random.default_rng(0))
    losses = model(batch)
    pixels = normalise(batch["pixels"], model.config.mean, model.config.std)
    with torch.no_grad():
        states = model.norm_image(image_states(model.visual, pixels))
        strips = torch.stack([torch.cat([states[:, 4 * row + i] for i in range(4)], dim=-1) for row in range(4)], dim=1)
        soft = strips @ model.to_language.weight.T + model.to_language.bias
        plain: Any = language_model(replace(LANGUAGE, vocab_size=words.vocab_size))
        plain.load_state_dict(model.language.state_dict())
        for name, update in model.lora.items():
            layer: Any = plain.get_submodule(name.replace("/", "."))
            layer.weight += 2.0 * update.B.weight @ update.A.weight
        total, count = 0.0, 0
        for ids, labels, vectors in zip(batch["ids"], batch["labels"], soft, strict=True):
            real = int((ids != -2).sum())
            logits = plain(inputs_embeds=embed(plain, ids[None, :real], vectors[None])).logits
            for place in range(1, real):
                if labels[place] != IGNORE_INDEX:
                    total -= float(logits[0, place - 1].log_softmax(-1)[labels[place]])
                    count += 1
    assert losses.total.item() == pytest.approx(total / count, abs=1e-4)
    assert_close(model._see(batch["pixels"]), soft, "vectors")


def test_the_layer_and_the_updates_learn(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(words)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    for stage in STAGES:
        model.enter_stage(stage)
        model(model.collate(samples[:8], np.random.default_rng(0))).total.backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(before[name], value) != name.startswith(("to_language.", "lora.")), name
    with pytest.raises(ValueError, match="expected one of pretraining, tasks, instructions"):
        model.enter_stage("captions")


def test_the_paper_trains_56_6_million_parameters() -> None:
    language = LanguageConfig(width=4096, depth=32, heads=32, hidden=64)
    with torch.device("meta"):
        model = MiniGPTv2(replace(MiniGPTv2Config.paper(), timm_name="", language=language), tokenizer(pad=0, end=2))
    counts = {name: sum(each.numel() for each in getattr(model, name).parameters()) for name in ("to_language", "lora")}
    assert counts == {"to_language": 23_072_768, "lora": 33_554_432}
    assert model.places == 256


def test_a_tower_is_taken_over_at_another_resolution(words: BPETokenizer) -> None:
    vision = replace(BLIP2Config.tiny().vision, width=32, depth=1, heads=2)
    blip2 = BLIP2(replace(BLIP2Config.tiny(), vision=vision, language=LANGUAGE, vocab_size=words.vocab_size), words)
    lm = LM(LMConfig(language=LANGUAGE, vocab_size=words.vocab_size), words)
    for side in (64, 128):
        model = build(words, vision=replace(vision, image_size=side))
        model.adopt({"vision": blip2, "language_model": lm})
        assert model.places == (side // 16) ** 2 // 4
        theirs, mine = blip2.visual.state_dict(), model.visual.state_dict()
        assert all(torch.equal(theirs[name], mine[name]) for name in theirs if name != "pos_embed")
        if side == 64:
            assert torch.equal(theirs["pos_embed"], mine["pos_embed"])
        else:  # smoother, with the same mean
            assert mine["pos_embed"].shape == (1, 64, 32)
            assert torch.allclose(theirs["pos_embed"].mean(), mine["pos_embed"].mean(), atol=1e-2)


def test_boxes_are_read_in_pixels_of_the_image(words: BPETokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = build(words), []
    images = [np.zeros((50, 200, 3), np.uint8), np.zeros((10, 10, 3), np.uint8)]

    def reply(images: Any, requests: list[str], **_: Any) -> list[Reply]:
        asked.extend(requests)
        return [Reply("{<10><20><30><40>} or {<0><0><1><1>}", True), Reply("there", True)]

    monkeypatch.setattr(model, "reply", reply)
    assert model.locate(images, ["the star", "the moon"]) == [(20, 10, 60, 20), None]
    assert asked[0] == "[refer] give me the location of the star"
    assert model.transform == ImageTransform(64, squeeze=True)


def test_squeezed_images_lose_nothing() -> None:
    image = np.zeros((20, 80, 3), np.uint8)
    image[:, :8], image[:, -8:] = 255, 128
    found = ImageTransform(40, squeeze=True)([image])[0]
    assert found.shape == (3, 40, 40)
    assert float(found[:, :, 0].float().mean()) > 240
    assert math.isclose(float(found[:, :, -1].float().mean()), 128, abs_tol=3)
    assert float(ImageTransform(40)([image]).float().mean()) == 0


def test_requests_have_identifiers(words: BPETokenizer, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    for identifiers in (True, False):
        model, asked = build(words, identifiers=identifiers), list[str]()

        def reply(images: Any, requests: list[str], asked: list[str] = asked, **_: Any) -> list[Reply]:
            asked.extend(requests)
            return [Reply("a", True)] * len(requests)

        monkeypatch.setattr(model, "reply", reply)
        model.caption([samples[0].image])
        model.answer([samples[0].image], ["what?"])
        assert asked == (["[caption] describe this picture.", "[vqa] what?"] if identifiers else ["describe this picture.", "what?"])


def test_a_qformer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--model.queries is 16"):
        replace(MiniGPTv2Config.tiny(), queries=16)
