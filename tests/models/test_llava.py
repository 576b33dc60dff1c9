"""What LLaVA reads, learns from and says: templates, dialogues, stages, forms of answers. Parity is in test_llava_parity.py."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import models
from data.sample import Question, Sample
from data.scenes.build import make_sample
from data.scenes.language import agreement, answer
from data.scenes.world import PRESETS
from models.clip import CLIP, CLIPConfig
from models.contract import IGNORE_INDEX
from models.llava import LLaVA, LLaVAConfig
from models.llava.instructions import dialogues, sentence
from models.llava.model import SYSTEM, VICUNA
from models.lm import LM, LMConfig
from models.lm.corpus import documents
from models.shared.backbones import LanguageConfig
from models.shared.chat import Template, Turn, laid_out
from models.shared.images import normalise
from models.shared.instructions import BRIEFLY, IN_ONE_WORD, has_form, reasoning, requests
from models.shared.prefix import PADDING, SOFT, log_likelihood, nll
from models.shared.prefix_model import STATES
from models.shared.prompts import DESCRIBE
from models.shared.text import BPETokenizer
from models.shared.vision import image_states
from tests.models.kit import randomise, tokenizer

LANGUAGE = LanguageConfig(width=32, depth=2, heads=2, hidden=48)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make_sample(PRESETS["tiny"], "train", index) for index in range(60)]


@pytest.fixture(scope="module")
def words(samples: list[Sample]) -> BPETokenizer:
    return BPETokenizer.train([text for sample in samples for text in documents([sample], np.random.default_rng(0))], 500)


def config(words: BPETokenizer, **changes: Any) -> LLaVAConfig:
    base = LLaVAConfig.tiny()
    vision = replace(base.vision, width=32, depth=2, heads=2)
    return replace(base, **{"vision": vision, "language": LANGUAGE, "vocab_size": words.vocab_size} | changes)


def build(words: BPETokenizer, **changes: Any) -> LLaVA:
    torch.manual_seed(0)
    model = LLaVA(config(words, **changes), words)
    randomise(model, 1)
    return model.eval()


# ------------------------------------------------------------------------------------------------------ template


def test_conversations_are_laid_out_as_vicuna_has_read_them(words: BPETokenizer) -> None:
    """Version 1: a system prompt, the image on a line of its own, and the end token after every reply."""
    template = Template(words, places=3, context=40, signs=replace(VICUNA, system=SYSTEM))
    turns = [Turn("what do you see?", "a red star."), Turn("what colour is it?", "red")]
    ids, labels = template.conversation(turns)
    assert [words.start, *words.encode(SYSTEM + "user: ")] == ids[: ids.index(SOFT)]
    assert ids.count(SOFT) == 3
    rest = ids[ids.index(SOFT) + 3 :]
    first, second = rest[: rest.index(words.end)], rest[rest.index(words.end) + 1 : -1]
    assert words.fast.decode(first, skip_special_tokens=False) == "\nwhat do you see? assistant: a red star."
    assert words.fast.decode(second, skip_special_tokens=False) == "user: what colour is it? assistant: red"
    learned = [label for label in labels if label != IGNORE_INDEX]
    assert learned == [*words.encode("a red star."), words.end, *words.encode("red"), words.end]
    assert ids[-1] == labels[-1] == words.end


def test_the_first_stage_has_no_question(words: BPETokenizer) -> None:
    ids, labels = Template(words, places=2, context=40, signs=replace(VICUNA, system=SYSTEM)).caption("a red star")
    assert ids == [words.start, SOFT, SOFT, *words.encode("a red star"), words.encode("a\n")[-1]]
    assert labels == [IGNORE_INDEX] * 3 + ids[3:]


# ----------------------------------------------------------------------------------------------------- dialogues


def test_dialogues_are_true_and_dealt_out(samples: list[Sample]) -> None:
    rng, forms = np.random.default_rng(0), Counter[str]()
    for sample in samples:
        known = {(request.text, request.reply): request.form for request in [*requests(sample), *reasoning(sample)]}
        for conversations, most in ((4, 5), (1, 30), (3, 3), (40, 40)):
            found = dialogues(sample, rng, conversations=conversations, most=most)
            lengths = [len(each) for each in found]
            assert len(found) == min(conversations, sum(lengths))
            assert sum(lengths) == min(most, 2 + len(sample.questions))
            assert max(lengths) - min(lengths) <= 1
            for turn in [turn for each in found for turn in each]:
                if turn.request == BRIEFLY:
                    assert turn.reply in sample.captions
                    forms["caption"] += 1
                elif turn in known:
                    forms[known[turn]] += 1
                else:
                    question = next(each for each in sample.questions if each.question == turn.request)
                    assert turn.reply == sentence(question.question, question.answer)
                    forms["sentence"] += 1
        everything = [turn for each in dialogues(sample, rng, conversations=1, most=100) for turn in each]
        asked = Counter(turn.request.removesuffix(IN_ONE_WORD) for turn in everything)
        assert all(asked[question.question] >= 1 for question in sample.questions)
        assert sum(asked[text] for text in DESCRIBE) == 1
    assert set(forms) == {"description", "list", "number", "reasoning", "caption", "word", "sentence"}


def test_a_question_is_answered_in_one_word_if_it_asks_for_that(samples: list[Sample]) -> None:
    """Without format prompts nothing tells which of them are."""
    with_prompt, without = Counter[tuple[bool, bool]](), Counter[bool]()
    rng = np.random.default_rng(0)
    for sample in samples:
        texts = {question.question for question in sample.questions}
        for prompt in (True, False):
            for turn in (turn for each in dialogues(sample, rng, conversations=40, most=40, format_prompt=prompt) for turn in each):
                if turn.request.removesuffix(IN_ONE_WORD) in texts:
                    short = has_form(turn.reply, "word")
                    if prompt:
                        with_prompt[turn.request.endswith(IN_ONE_WORD), short] += 1
                    else:
                        assert not turn.request.endswith(IN_ONE_WORD) or turn.request not in texts
                        without[short] += 1
    assert set(with_prompt) == {(True, True), (False, False)}
    assert 0.65 < without[True] / without.total() < 0.85


def test_sentences_say_what_the_answer_says(samples: list[Sample]) -> None:
    kinds = Counter[str]()
    for question in (question for sample in samples for question in sample.questions):
        said = sentence(question.question, question.answer)
        assert said is not None, question
        assert said.endswith(".")
        assert has_form(said, "description")
        kinds[question.kind] += 1
    assert len(kinds) >= 5
    assert sentence("what colour is the star?", "red") == "the star is red."
    assert sentence("what shape is the orange object?", "arrow") == "the orange object is an arrow."
    assert sentence("is there an orange star?", "no") == "no, there is not an orange star."
    assert sentence("where is the star as seen from the blue object?", "left") == "the star is to the left of the blue object."
    assert sentence("is the star to the left of the blue moon?", "no") == "no, the star is not to the left of the blue moon."
    assert sentence("is the star above the moon?", "yes") == "yes, the star is above the moon."
    assert sentence("how many red objects are there?", "1") == "the number of red objects is 1."
    assert sentence("is there a star?", "perhaps") is None
    assert sentence("who is this?", "nobody") is None


def test_sentences_about_places_are_true(samples: list[Sample]) -> None:
    for sample in samples:
        for question in sample.questions:
            if question.question.startswith("where is"):
                said = sentence(question.question, question.answer) or ""
                subject, rest = said.removesuffix(".").split(" is ", 1)
                assert answer(f"is {subject} {rest}?", sample.objects, sample.extra["relations"]) == "yes"


def test_samples_without_truth_are_asked_what_is_known_of_them() -> None:
    image, rng = np.zeros((8, 8, 3), np.uint8), np.random.default_rng(0)
    assert dialogues(Sample("a", image), rng, conversations=8, most=9) == [[Turn(DESCRIBE[0], "")]]
    photo = Sample("b", image, captions=("a dog on a sofa",), questions=(Question("who?", "the black dog"),))
    found = [turn for each in dialogues(photo, rng, conversations=8, most=9) for turn in each]
    assert {turn.reply for turn in found} == {"a dog on a sofa", "the black dog"}
    assert {Turn("who?", "the black dog"), Turn(BRIEFLY, "a dog on a sofa")} < set(found)


# ------------------------------------------------------------------------------------------- what learns, what not


@pytest.mark.parametrize(
    ("changes", "learns"),
    [
        ({}, ("to_language.", "language.")),
        ({"bridge": 1}, ("to_language.", "language.")),
        ({"tune_language": False}, ("to_language.",)),
        ({"rank": 3}, ("to_language.", "lora.")),
        ({"states": "last"}, ("to_language.", "language.")),
        ({"system": SYSTEM, "conversations": 1, "requests": 3}, ("to_language.", "language.")),
    ],
)
def test_the_first_stage_trains_the_mlp_the_second_the_language_model_too(
    changes: dict[str, Any], learns: tuple[str, ...], words: BPETokenizer, samples: list[Sample]
) -> None:
    model = build(words, **changes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    for step, (stage, trained) in enumerate((("align", ("to_language.",)), ("tune", learns))):
        model.enter_stage(stage)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer.zero_grad()
        batch = model.collate(model.precompute(samples[:8]), np.random.default_rng(step))
        losses = model(batch)
        assert losses.chance["text"] == pytest.approx(np.log(words.vocab_size))
        losses.total.backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == name.startswith(trained), (stage, name)
            assert parameter.requires_grad == name.startswith(trained), (stage, name)
        for name, value in model.state_dict().items():
            assert torch.equal(before[name], value) != name.startswith(trained), (stage, name)


def test_low_rank_updates_begin_as_the_language_model_itself(words: BPETokenizer, samples: list[Sample]) -> None:
    torch.manual_seed(0)
    plain = LLaVA(config(words), words).eval()
    adapted = LLaVA(config(words, rank=4), words).eval()
    missing, unexpected = adapted.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert len(missing) == 2 * 7 * LANGUAGE.depth  # A and B beside each of a block's seven layers
    batch = plain.collate(samples[:4])
    assert torch.equal(plain(batch).total, adapted(batch).total)


def test_it_takes_over_a_clips_tower_and_a_language_model(words: BPETokenizer) -> None:
    vision = config(words).vision
    clip = CLIP(replace(CLIPConfig.tiny(), vision=vision, vocab_size=words.vocab_size), words)
    lm = LM(LMConfig(language=LANGUAGE, vocab_size=words.vocab_size), words)
    randomise(clip, 2)
    randomise(lm, 3)
    pixels = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    states = normalise(pixels, LLaVAConfig.mean, LLaVAConfig.std)
    for name, blocks in (("penultimate", 1), ("last", 2)):
        model = build(words, states=name)
        model.adopt({"vision": clip, "language_model": lm})
        shallow = CLIP(replace(clip.config, vision=replace(vision, depth=blocks)), words).visual
        shallow.load_state_dict({key: value for key, value in clip.visual.state_dict().items() if f"blocks.{blocks}." not in key})
        assert torch.allclose(model._states(pixels), image_states(shallow, states), atol=1e-6)
        assert all(torch.equal(value, model.language.state_dict()[key]) for key, value in lm.language.state_dict().items())


def test_states_are_computed_once_and_learned_from_as_pixels_are(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(words)
    model.enter_stage("tune")
    known = model.precompute(samples[:6])
    assert known[0].extra[STATES].shape == (16, 32)
    assert known[0].extra[STATES].dtype == np.float16
    cached, seen = model.collate(known, np.random.default_rng(3)), model.collate(samples[:6], np.random.default_rng(3))
    assert torch.equal(cached["ids"], seen["ids"])
    assert cached.keys() - seen.keys() == {"states"}
    assert seen.keys() - cached.keys() == {"pixels"}
    assert model(cached).total.item() == pytest.approx(model(seen).total.item(), abs=1e-3)


def test_conversations_of_a_picture_do_not_see_each_other(words: BPETokenizer, samples: list[Sample]) -> None:
    model = build(words)
    model.enter_stage("tune")
    batch = model.collate(samples[:3], np.random.default_rng(0))
    assert batch["ids"].shape[:2] == (3, 4)
    together = model.encode(batch)
    with torch.no_grad():
        soft = model._see(batch["pixels"])
        for image in range(3):
            rows = zip(batch["ids"][image], batch["labels"][image], strict=True)
            alone = [
                nll(model.language, some[None], targets[None], soft[image : image + 1]) for some, targets in rows if (some != PADDING).any()
            ]
            assert float(sum(total for total, _ in alone)) == pytest.approx(float(together["nll"][image]), rel=1e-4)
            assert sum(int(count) for _, count in alone) == int(together["tokens"][image])


def test_configurations_that_make_no_sense_are_refused(words: BPETokenizer) -> None:
    for name in ("bridge", "conversations", "requests"):
        with pytest.raises(ValueError, match=f"--model.{name} is 0"):
            config(words, **{name: 0})
    with pytest.raises(ValueError, match="expected align or tune"):
        build(words).enter_stage("captions")
    with pytest.raises(ValueError, match="expected a deeper one"):
        build(words, vision=replace(config(words).vision, depth=1))


@pytest.mark.parametrize(
    ("bridge", "width", "trained"), [(2, 4096, 20_979_712), (2, 5120, 31_467_520), (1, 4096, 4_198_400), (1, 5120, 5_248_000)]
)
def test_the_mlp_has_the_papers_size_and_reads_576_states(bridge: int, width: int, trained: int) -> None:
    language = LanguageConfig(width=width, depth=1, heads=32, hidden=64)
    with torch.device("meta"):
        model = LLaVA(replace(LLaVAConfig.paper(), timm_name="", bridge=bridge, language=language), tokenizer(pad=0, end=2))
    model.enter_stage("align")
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == trained
    assert model.places == 576
    tower = sum(parameter.numel() for parameter in model.visual.parameters())
    assert tower == 303_507_456 - 2 * 1024 - 12_596_224  # CLIP's, without its last norm and its last block


# -------------------------------------------------------------------------------------------------- what it says


def test_answers_are_asked_for_in_one_word(words: BPETokenizer, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    images, question = [sample.image for sample in samples[:2]], "what colour is it?"
    for prompt, expected in ((True, question + IN_ONE_WORD), (False, question)):
        model = build(words, format_prompt=prompt)
        asked: list[list[int]] = []
        go_on = model.go_on
        monkeypatch.setattr(
            model, "go_on", lambda rows, soft, go_on=go_on, asked=asked, **how: asked.extend(rows) or go_on(rows, soft, **how)
        )
        assert model.answer(images, [question] * 2) == [reply.text for reply in model.reply(images, [expected] * 2)]
        assert asked[0] == model.template.before_reply([], expected)
        row = model.template.conversation([Turn(expected, "red")])
        assert torch.equal(model.answer_likelihood(images[:1], [question], ["red"]), model.likelihoods(images[:1], **laid_out([row])))


def test_a_score_is_the_likelihood_of_a_caption_that_was_asked_for(words: BPETokenizer, samples: list[Sample]) -> None:
    model, images = build(words), [sample.image for sample in samples[:3]]
    texts = [sample.captions[0] for sample in samples[:3]]
    batch = laid_out([model.template.conversation([Turn(BRIEFLY, text)]) for text in texts])
    expected = log_likelihood(model.language, batch["ids"], batch["labels"], model.look(images), [0, 1, 2])
    assert torch.allclose(model.score(images, texts), expected, atol=1e-4)
    assert model.caption(images) == [reply.text for reply in model.reply(images, [DESCRIBE[0]] * 3)]


def test_a_run_folder_gives_it_back(words: BPETokenizer, samples: list[Sample], tmp_path: Any) -> None:
    images = [sample.image for sample in samples[:2]]
    for number, changes in enumerate(({}, {"rank": 2, "system": "a chat. "})):
        model = build(words, **changes)
        models.save(model, tmp_path / str(number))
        back: Any = models.load(tmp_path / str(number))
        assert back.caption(images) == model.caption(images)
        assert torch.equal(back.score(images, ["a star"] * 2), model.score(images, ["a star"] * 2))


def test_true_descriptions_are_what_the_second_stage_teaches(samples: list[Sample]) -> None:
    rng = np.random.default_rng(0)
    for sample in samples[:20]:
        for turn in (turn for each in dialogues(sample, rng, conversations=8, most=9) for turn in each):
            if turn.request in (*DESCRIBE, BRIEFLY):
                assert agreement(turn.reply, sample) == 1
