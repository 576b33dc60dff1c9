"""Qwen-VL: its adapter by hand and by torch's attention, its texts, stages and boxes, several images, and the loss by hand."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
from data.dialogues import turns_of
from data.objects import overlap
from data.sample import Object, Sample
from data.scenes.build import make_sample
from data.scenes.language import agreement
from data.scenes.several import several
from data.scenes.world import PRESETS
from models.clip import CLIP, CLIPConfig
from models.contract import IGNORE_INDEX
from models.llava import QwenVL, QwenVLConfig
from models.llava.qwenvl import CHAT, PLAIN, STAGES, SYSTEM, Adapter, grid_places, resized
from models.llava.qwenvl_tasks import ANSWER, CAPTION, MIXTURE, TASKS, boxed
from models.lm import LM, LMConfig
from models.lm.corpus import documents
from models.shared.backbones import LanguageConfig
from models.shared.boxes import THOUSANDTHS, boxes_in
from models.shared.chat import Reply, Template, Turn
from models.shared.images import ImageTransform
from models.shared.prefix import PADDING, SOFT, embed
from models.shared.text import BPETokenizer
from models.shared.vision import TINY_TOWER
from tests.models.kit import randomise, tokenizer

LANGUAGE = LanguageConfig(width=32, depth=2, heads=2, hidden=48)
TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make_sample(TINY, "train", index) for index in range(40)]


@pytest.fixture(scope="module")
def words(samples: list[Sample]) -> BPETokenizer:
    return BPETokenizer.train([text for sample in samples for text in documents([sample], np.random.default_rng(0))], 500)


def build(words: BPETokenizer, **changes: Any) -> QwenVL:
    torch.manual_seed(0)
    base = QwenVLConfig.tiny()
    small: dict[str, Any] = {
        "vision": replace(base.vision, width=32, depth=1, heads=2),
        "heads": 2,
        "language": LANGUAGE,
        "vocab_size": words.vocab_size,
    }
    model = QwenVL(replace(base, **small | changes), words)
    randomise(model, 1)
    return model.eval()


# ------------------------------------------------------------------------------------------------------- adapter


def adapter(**changes: Any) -> Adapter:
    torch.manual_seed(0)
    found = Adapter(**{"features": 6, "width": 8, "queries": 4, "heads": 2, "patches": 9} | changes)
    randomise(found, 3)
    return found.double()


def place_by_hand(column: float, row: float, width: int) -> list[float]:
    """Half of the width for the column, then half for the row: sines of all frequencies, then cosines."""
    frequencies = [10_000 ** (-band / (width // 4)) for band in range(width // 4)]
    found: list[float] = []
    for at in (column, row):
        found += [math.sin(at * each) for each in frequencies] + [math.cos(at * each) for each in frequencies]
    return found


def cubic(table: list[float], at: float) -> float:
    """Bicubic interpolation in one dimension (a = -.75), whose border values repeat."""

    def weight(distance: float) -> float:
        d, a = abs(distance), -0.75
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    first = math.floor(at)
    return sum(weight(at - place) * table[min(max(place, 0), len(table) - 1)] for place in range(first - 1, first + 3))


def key_place_by_hand(index: int, side: int, own: int, width: int) -> list[float]:
    """The places of an `own` x `own` grid, interpolated at cell `index` of one with `side` x `side` cells."""
    row, column = divmod(index, side)
    at_row, at_column = ((cell + 0.5) * own / side - 0.5 for cell in (row, column))
    table = [[place_by_hand(x, y, width) for x in range(own)] for y in range(own)]
    return [cubic([cubic([table[y][x][i] for x in range(own)], at_column) for y in range(own)], at_row) for i in range(width)]


def normed_by_hand(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    mean = x.sum() / len(x)
    variance = ((x - mean) ** 2).sum() / len(x)
    return (x - mean) / (variance + 1e-6) ** 0.5 * norm.weight + norm.bias


def adapted_by_hand(one: Adapter, patches: Tensor, *, places: bool = True) -> Tensor:
    """Query by query, head by head: softmax((W_q (LN(query) + place)) . (W_k (LN(W patch) + place)) / sqrt(d)) over W_v LN(W patch)."""
    width, own, side = one.queries.shape[1], math.isqrt(len(one.queries)), math.isqrt(patches.shape[1])
    each = width // one.heads
    enter: Any = one.enter
    images = []
    for image in patches:
        values = [normed_by_hand(enter.weight @ patch, one.norm_patches) for patch in image]
        rows = []
        for number, query in enumerate(one.queries):
            row, column = divmod(number, own)
            own_place = torch.tensor(place_by_hand(column, row, width), dtype=torch.float64) * places
            q = one.q.weight @ (normed_by_hand(query, one.norm_queries) + own_place) + one.q.bias
            heads = []
            for head in range(one.heads):
                part = slice(head * each, (head + 1) * each)
                logits = []
                for index, value in enumerate(values):
                    place = torch.tensor(key_place_by_hand(index, side, own, width), dtype=torch.float64) * places
                    logits.append(q[part] @ (one.k.weight @ (value + place) + one.k.bias)[part] / each**0.5)
                shares = torch.stack(logits).exp() / torch.stack(logits).exp().sum()
                heads.append(sum(share * (one.v.weight @ value + one.v.bias)[part] for share, value in zip(shares, values, strict=True)))
            rows.append(one.proj.weight @ torch.cat(heads) + one.proj.bias)
        images.append(torch.stack(rows))
    return torch.stack(images)


@pytest.mark.parametrize("places", [True, False])
def test_the_adapter_is_that_of_the_paper(places: bool) -> None:
    """Outputs and all gradients to 1e-6, with interpolated places: 2 x 2 queries on 3 x 3 patches."""
    one = adapter(places=places)
    patches = torch.randn(2, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5), requires_grad=True)
    target = torch.randn(2, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    found: list[dict[str, Tensor]] = []
    for make in (one, lambda patches: adapted_by_hand(one, patches, places=places)):
        one.zero_grad()
        patches.grad = None
        out = make(patches)
        (out * target).sum().backward()
        gradients = {name: parameter.grad.clone() for name, parameter in one.named_parameters() if parameter.grad is not None}
        found.append({"out": out.detach(), "patches": patches.grad.clone(), **gradients})  # type: ignore[union-attr]
    ours, slow = found
    assert ours.keys() == slow.keys() == {"out", "patches"} | {name for name, _ in one.named_parameters()}
    for name, value in ours.items():
        assert (value - slow[name]).abs().max() <= 1e-6, name
        assert value.abs().max() > 1e-4 or name == "k.bias", name  # a bias of the keys moves all logits alike


def test_the_adapter_is_torchs_attention() -> None:
    """The released code uses `nn.MultiheadAttention`."""
    one = adapter(patches=4)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([one.q.weight, one.k.weight, one.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([one.q.bias, one.k.bias, one.v.bias]))
        theirs.out_proj.weight.copy_(one.proj.weight)
        theirs.out_proj.bias.copy_(one.proj.bias)
    patches = torch.randn(3, 4, 6, dtype=torch.float64)
    values = one.norm_patches(one.enter(patches))
    query = (one.norm_queries(one.queries) + one.query_places).expand(3, -1, -1)
    assert (one(patches) - theirs(query, values + one.query_places, values)[0]).abs().max() <= 1e-6


def test_places_tell_columns_first_and_are_interpolated() -> None:
    for side, width in ((3, 8), (4, 12)):
        expected = [place_by_hand(number % side, number // side, width) for number in range(side * side)]
        assert torch.allclose(grid_places(side, width), torch.tensor(expected), atol=1e-6)
        wider = [key_place_by_hand(index, 5, side, width) for index in range(25)]
        assert torch.allclose(resized(grid_places(side, width), 5), torch.tensor(wider), atol=1e-5)
    assert resized(grid_places(3, 8), 3).equal(grid_places(3, 8))


def test_the_adapter_starts_as_in_the_released_code() -> None:
    torch.manual_seed(0)
    one = Adapter(features=128, width=256, queries=64, heads=4, patches=64)
    assert float(one.queries.detach().std()) == pytest.approx(0.02, rel=0.1)
    enter: Any = one.enter
    for layer in (enter, one.proj):
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    bound = math.sqrt(6 / (4 * 256))  # Xavier of a layer from 256 to 3 x 256
    for layer in (one.q, one.k, one.v):
        assert float(layer.weight.detach().abs().max()) == pytest.approx(bound, rel=0.01)
    assert not any(layer.bias.any() for layer in (one.q, one.k, one.v, one.proj))
    assert not {"query_places", "key_places"} & {name for name, _ in one.named_parameters()}


# -------------------------------------------------------------------------------------------------------- texts


def test_texts_are_laid_out_as_in_the_paper(words: BPETokenizer) -> None:
    def said(tokens: list[int]) -> str:
        return words.fast.decode([token for token in tokens if token not in (SOFT, IGNORE_INDEX)], skip_special_tokens=False)

    plain = Template(words, places=2, context=60, signs=PLAIN)
    ids, labels = plain.conversation([Turn("<ref>the star</ref>", "<box>(1,2),(3,4)</box>")])
    assert said(ids).replace(" ", "") == "<start><img></img><ref>thestar</ref><box>(1,2),(3,4)</box><end>"
    assert said(labels).replace(" ", "") == "<box>(1,2),(3,4)</box><end>"
    assert ids.count(SOFT) == 2
    alone, learned = plain.conversation([Turn("", "a red star")], images=0)
    assert said(alone).replace(" ", "") == "<start>aredstar<end>"
    assert learned == [IGNORE_INDEX, *alone[1:]]

    chat = Template(words, places=2, context=60, signs=replace(CHAT, system=SYSTEM))
    ids, labels = chat.conversation([Turn("what is different?", "the colour"), Turn("where?", "left")], images=2)
    assert said(ids).replace(" ", "").replace("\n", "/") == (
        "<start><|im_start|>system/youareahelpfulassistant.<|im_end|>/<|im_start|>user/picture1:<img></img>/picture2:<img></img>/"
        "whatisdifferent?<|im_end|>/<|im_start|>assistant/thecolour<end>/<|im_start|>user/where?<|im_end|>/<|im_start|>assistant/left<end>"
    )
    assert said(labels).replace(" ", "") == "thecolour<end>left<end>"
    assert ids.count(SOFT) == 4


def test_tasks_are_true(samples: list[Sample]) -> None:
    rng, found = np.random.default_rng(0), Counter[str]()
    for sample in samples:
        by_name = {f"the {each.attributes['colour']} {each.name}": each for each in sample.objects}
        for task, make in TASKS.items():
            turn = make(sample, rng)
            if task == "several":
                assert turn is None
                continue
            assert turn is not None
            found[task] += 1
            if task == "caption":
                assert turn.request == CAPTION
                assert turn.reply in sample.captions
            if task == "vqa":
                assert turn in [Turn(ANSWER.format(each.question), each.answer) for each in sample.questions]
            if task == "refer":
                match = re.fullmatch(r"<ref>(.+)</ref>", turn.request)
                assert match is not None
                assert turn.reply == boxed(by_name[match[1]], sample)
            if task == "identify":
                (box,) = boxes_in(turn.request, 64, 64, THOUSANDTHS)
                nearest = max(by_name, key=lambda name, box=box, by=by_name: overlap(by[name].box, box))  # type: ignore[misc]
                assert turn.reply == f"<ref>{nearest}</ref>"
            if task == "grounding":
                phrases = re.findall(r"<ref>an? (.+?)</ref>(<box>.+?</box>)", turn.reply)
                assert len(phrases) == len(sample.objects)
                for phrase, box_said in phrases:
                    assert box_said == boxed(by_name[f"the {phrase}"], sample)
                assert agreement(re.sub(r"<box>.+?</box>", "", turn.reply).replace("</ref>", "").replace("<ref>", ""), sample) == 1
    assert min(found.values()) == len(samples)


def test_the_second_stage_mixes_tasks_and_texts_alone(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(words, text_share=0.25)
    model.enter_stage("tasks")
    rng = np.random.default_rng(0)
    rows = [row for sample in samples * 10 for row in model.collate.rows(sample, rng)]
    assert len(rows) == 10 * len(samples) * model.config.sequences
    share = np.mean([SOFT not in row.ids for row in rows])
    assert share == pytest.approx(0.25, abs=0.03)
    model = build(words, text_share=0.0)
    model.enter_stage("tasks")
    assert all(SOFT in row.ids for sample in samples for row in model.collate.rows(sample, None))
    assert set(MIXTURE) == set(TASKS)


def test_what_the_annotations_do_not_allow_is_not_asked(words: BPETokenizer) -> None:
    rng, image = np.random.default_rng(0), np.zeros((40, 80, 3), np.uint8)
    two = Sample("b", image, objects=(Object("dog", (0, 0, 8, 8)), Object("dog", (40, 0, 80, 20))))
    assert TASKS["refer"](two, rng) is None  # which dog?
    found = TASKS["grounding"](two, rng)
    assert found is not None
    assert found.reply == "<ref>a dog</ref><box>(0,0),(100,200)</box>, <ref>a dog</ref><box>(500,0),(999,500)</box>"
    for stage in STAGES:  # nothing is known of this picture
        model = build(words)
        model.enter_stage(stage)
        batch = model.collate([Sample("c", image, captions=("a dog",)), two], np.random.default_rng(0))
        assert torch.isfinite(model(batch).total)


def test_conversations_are_about_places_and_about_all_pictures(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(words)
    model.enter_stage("chat")
    page = several(TINY, "train", 0)
    for sample, pictures in ((samples[0], 1), (page, len(page.images))):
        rows = model.collate.rows(sample, np.random.default_rng(0))
        texts = [words.decode([token for token in row.ids if token >= 0]) for row in rows]
        assert any("<ref>the" in text.replace("< ref > the", "<ref>the") for text in texts) or not sample.objects
        assert max(row.ids.count(SOFT) for row in rows) == pictures * model.places
        assert len(rows) <= model.config.sequences


# ---------------------------------------------------------------------------------------------- the loss by hand


def by_hand(model: QwenVL, batch: dict[str, Tensor]) -> tuple[float, int]:
    """Sum of the negative log-likelihoods of all targets, and their number: sequence by sequence, each alone with its own vectors."""
    total, count = 0.0, 0
    with torch.no_grad():
        for pixels, pictures, ids_of, labels_of in zip(batch["pixels"], batch["pictures"], batch["ids"], batch["labels"], strict=True):
            vectors = torch.cat([model._see(pixel[None])[0] for pixel in pixels[: int(pictures)]])
            for ids, labels in zip(ids_of, labels_of, strict=True):
                real, places = int((ids != PADDING).sum()), int((ids == SOFT).sum())
                if not real:
                    continue
                logits = model.language(inputs_embeds=embed(model.language, ids[None, :real], vectors[None, :places].flatten(0, 1))).logits
                for place in range(1, real):
                    if labels[place] != IGNORE_INDEX:
                        total -= float(logits[0, place - 1].log_softmax(-1)[labels[place]])
                        count += 1
    return total, count


@pytest.mark.parametrize("sequences", [1, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_is_that_of_the_replies(stage: str, sequences: int, words: BPETokenizer, samples: list[Sample]) -> None:
    """Samples of one, two and three pictures, and texts without any, in one batch."""
    model = build(words, sequences=sequences, text_share=0.3)
    model.enter_stage(stage)
    mixed = [*samples[:3], *(several(TINY, "train", index) for index in range(4))]
    assert {len(sample.images) for sample in mixed} == {1, 2, 3}
    batch = model.collate(mixed, np.random.default_rng(1))
    total, count = by_hand(model, batch)
    assert model(batch).total.item() == pytest.approx(total / count, rel=1e-4)
    assert int(model.encode(batch)["tokens"].sum()) == count


def test_vectors_are_the_towers_patches_through_the_adapter(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(words)
    seen: list[Tensor] = []
    model.adapter.attention.register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0], output]))  # type: ignore[union-attr]
    soft = model.look([sample.image for sample in samples[:3]])
    states, out = seen
    assert states.shape == (3, 64, 32)
    normed = torch.nn.functional.layer_norm(out, (32,), model.adapter.norm.weight, model.adapter.norm.bias, 1e-6)  # type: ignore[arg-type,union-attr]
    assert torch.allclose(soft, normed @ model.adapter.proj.weight.T, atol=1e-6)  # type: ignore[union-attr,operator]
    assert soft.shape == (3, 16, 32)


def test_texts_alone_see_no_picture(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(words, text_share=0.9999, sequences=2)
    model.enter_stage("tasks")
    batch = model.collate(samples[:4], np.random.default_rng(0))
    assert not (batch["ids"] == SOFT).any()
    other = batch | {"pixels": 255 - batch["pixels"]}
    assert torch.equal(model(batch).total, model(other).total)


# ------------------------------------------------------------------------------------------------------- stages


def test_stages_train_what_they_say(words: BPETokenizer, samples: list[Sample]) -> None:
    for tuned in (True, False):
        model = build(words, tune_language=tuned)
        for step, (stage, parts) in enumerate(STAGES.items()):
            model.enter_stage(stage)
            trained = tuple(f"{part}." for part in parts if tuned or part != "language")
            optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2, weight_decay=0.5)
            before = {name: value.clone() for name, value in model.state_dict().items()}
            model.zero_grad()
            model(model.collate(samples[:8], np.random.default_rng(step))).total.backward()
            optimizer.step()
            for name, parameter in model.named_parameters():
                assert parameter.requires_grad == name.startswith(trained), (stage, name)
                assert (parameter.grad is not None) == name.startswith(trained), (stage, name)
            for name, value in model.state_dict().items():
                assert torch.equal(before[name], value) != name.startswith(trained), (stage, name)
    with pytest.raises(ValueError, match="expected one of captions, tasks, chat"):
        model.enter_stage("align")


def test_it_takes_over_a_clips_tower_with_patches_of_half_the_size_and_a_language_model(words: BPETokenizer) -> None:
    vision = replace(TINY_TOWER, width=32, depth=1, heads=2)
    clip = CLIP(replace(CLIPConfig.tiny(), vision=vision, vocab_size=words.vocab_size), words)
    lm = LM(LMConfig(language=LANGUAGE, vocab_size=words.vocab_size), words)
    randomise(clip, 2)
    randomise(lm, 3)
    for patch, patches in ((8, 64), (16, 16)):
        model = build(words, vision=replace(vision, patch_size=patch))
        model.adopt({"vision": clip, "language_model": lm})
        assert model.visual.pos_embed.shape == (1, patches, 32)
        theirs, mine = clip.visual.state_dict(), model.visual.state_dict()
        changed = {name for name in mine if not torch.equal(mine[name], theirs[name])}
        assert changed == ({"pos_embed", "patch_embed.layers.9.weight"} if patch == 8 else set())
        alike = torch.randn(1, 128, 1, 1).expand(1, 128, 4, 4)  # features that are the same everywhere stay what they were
        ours, old = (tower.patch_embed.layers[9](alike)[0, :, 0, 0] for tower in (model.visual, clip.visual))
        assert torch.allclose(ours, old, atol=1e-4)
        assert all(torch.equal(value, model.language.state_dict()[key]) for key, value in lm.language.state_dict().items())


def test_the_paper_has_9_6_billion_parameters_of_which_92_million_are_the_adapters() -> None:
    language = LanguageConfig(width=4096, depth=1, heads=32, hidden=64)
    with torch.device("meta"):
        model = QwenVL(replace(QwenVLConfig.paper(), timm_name="", language=language), tokenizer(pad=0, end=2))
    parts: Any = model.adapter
    counts = [sum(each.numel() for each in part.parameters()) for part in (parts.attention, parts.norm, parts.proj)]
    assert counts == [75_005_952, 8_192, 16_777_216]
    assert (model.places, model.visual.patch_embed.num_patches, model.visual.num_prefix_tokens) == (256, 1024, 0)
    assert sum(each.numel() for each in model.visual.parameters()) == pytest.approx(1.9e9, rel=0.05)


@pytest.mark.parametrize(
    ("name", "value"), [("queries", 0), ("queries", 8), ("heads", 0), ("sequences", 0), ("requests", 0), ("text_share", 1.0)]
)
def test_configurations_that_make_no_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"--model.{name.replace('_', '-')} is {value}"):
        replace(QwenVLConfig.tiny(), **{name: value})


def test_heads_divide_the_language_models_width(words: BPETokenizer) -> None:
    with pytest.raises(ValueError, match=r"--model\.heads is 5, expected a divisor of the language model's width, 32"):
        build(words, heads=5)


# -------------------------------------------------------------------------------------------------- what it says


def test_boxes_are_read_in_pixels_of_the_image(words: BPETokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = build(words), []
    images = [np.zeros((999, 1998, 3), np.uint8), np.zeros((10, 10, 3), np.uint8)]

    def reply(images: Any, requests: list[str], *, template: Template, **_: Any) -> list[Reply]:
        assert template is model.plain
        asked.extend(requests)
        return [Reply("<box>(10,20),(30,40)</box><box>(0,0),(1,1)</box>", True), Reply("there", True)]

    monkeypatch.setattr(model, "reply", reply)
    assert model.locate(images, ["the star", "the moon"]) == [(20, 20, 60, 40), None]
    assert asked[0] == "<ref>the star</ref>"
    assert model.transform == ImageTransform(64, squeeze=True)


def test_capabilities_ask_as_the_paper_evaluates(words: BPETokenizer, samples: list[Sample]) -> None:
    model, images = build(words), [sample.image for sample in samples[:2]]
    assert model.caption(images) == [each.text for each in model.reply(images, [CAPTION] * 2, template=model.plain)]
    asked = model.answer(images, ["what?"] * 2)
    assert asked == [each.text for each in model.reply(images, ["what? Answer:"] * 2, template=model.plain)]
    batch = {"nll": model.score(images, ["a star"] * 2)}
    row = model.plain.conversation([Turn(CAPTION, "a star")])
    for image, value in zip(images, batch["nll"], strict=True):
        one = {"ids": torch.tensor([[row.ids]]), "labels": torch.tensor([[row.labels]]), "pictures": torch.tensor([1])}
        pixels = model.transform([image])[:, None]
        assert float(value) == pytest.approx(-by_hand(model, one | {"pixels": pixels})[0], abs=1e-3)


def test_it_replies_about_several_pictures(words: BPETokenizer) -> None:
    model, page = build(words), several(TINY, "train", 1)
    request = turns_of(page)[0][0]
    together = model.reply([list(page.images)], [request])
    soft = model.look(list(page.images)).flatten(0, 1)
    ids = model.template.before_reply([], request, images=len(page.images))
    assert together == model.go_on([ids], soft)


def test_a_run_folder_gives_it_back(words: BPETokenizer, samples: list[Sample], tmp_path: Any) -> None:
    images = [sample.image for sample in samples[:2]]
    for number, changes in enumerate(({}, {"places": False, "queries": 4, "system": SYSTEM})):
        model = build(words, **changes)
        models.save(model, tmp_path / str(number))
        back: Any = models.load(tmp_path / str(number))
        assert back.caption(images) == model.caption(images)
        assert torch.equal(back.score(images, ["a star"] * 2), model.score(images, ["a star"] * 2))
