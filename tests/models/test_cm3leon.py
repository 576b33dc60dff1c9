"""CM3leon: sequences, the causally masked objective, what is retrieved, and what it writes and draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.sample import Object, Question, Sample
from models.clip import CLIP, CLIPConfig
from models.cm3leon import CM3leon, CM3leonConfig
from models.cm3leon.collate import INSTRUCTION, Mix, aligned, alone, without
from models.cm3leon.decoder import DecoderConfig
from models.cm3leon.drawing import Sampling, contrasted
from models.cm3leon.objective import Weights
from models.cm3leon.retrieval import Memory
from models.cm3leon.sequence import Builder, Frame, Kind, Vocabulary, random_spans
from models.shared.generate import Decoding
from models.shared.text import BPETokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from models.vq import VQ, VQConfig
from models.vq.network import NetworkConfig
from tests.models.kit import assert_close, randomise

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (40, 160, 40), "pink": (250, 130, 190)}
TOKENIZER = BPETokenizer.train([f"a large {colour} square on a plain background" for colour in COLOURS] * 3, 300)
NETWORK = NetworkConfig(image_size=16, patch=4, width=16, multiplier=(1,), blocks=1, latent=16, norm="none", attention=False)
CONFIG = CM3leonConfig(
    decoder=DecoderConfig(width=32, depth=2, heads=2, hidden=64, positions=220),
    image_tokenizer=VQConfig(network=NETWORK, quantiser="fsq", levels=(4, 3, 3)),
    retriever=CLIPConfig(
        vision=VisionConfig(width=16, depth=1, heads=2, image_size=16, patch_size=8),
        text=TransformerConfig(width=16, depth=1, heads=2),
        embed_dim=8,
        context=16,
        vocab_size=TOKENIZER.vocab_size,
    ),
    vocab_size=TOKENIZER.vocab_size,
    text=24,
    framed=True,
    memory=20,
    skip_above=0.999,
    mix=Mix(spans=0.0, documents=(1.0,)),
    guidance=2.0,
    top_p=1.0,
    samples=1,
)
FRAMED = pytest.mark.parametrize("framed", [True, False], ids=["framed", "consecutive"])


# ------------------------------------------------------------------------------------------------------- sequences

VOCABULARY = Vocabulary(text=50, images=10)
BUILDER = Builder(VOCABULARY, Frame(text=5, cells=4), start=1, end=2)
BREAK, MASK, INFILL = 50, 51, 52


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], [1, 7, 8, 9, BREAK, -1, -2, -3, -4, 2]),
        ([(0, 3)], [1, MASK, BREAK, -1, -2, -3, -4, INFILL, 7, 8, 9, 2]),
        ([(1, 2), (5, 7)], [1, 7, MASK, 9, BREAK, -1, MASK, -4, INFILL, 8, INFILL, -2, -3, 2]),
        ([(4, 8)], [1, 7, 8, 9, BREAK, MASK, INFILL, -1, -2, -3, -4, 2]),
    ],
    ids=["causal", "whole text", "two spans", "whole picture"],
)
def test_spans_are_moved_behind_the_document(spans: list[tuple[int, int]], expected: list[int]) -> None:
    tokens = BUILDER.document([7, 8, 9], spans)
    assert [token.id for token in tokens] == expected
    plain = {token.id: token.place for token in BUILDER.document([7, 8, 9])}
    moved = {token.id: token.place for token in tokens if token.id in plain}
    assert moved == {id_: plain[id_] for id_ in moved}  # in its frame, what is cut out keeps its place


@pytest.mark.parametrize("span", [(2, 4), (3, 4), (0, 5), (2, 2), (6, 9)], ids=str)
def test_no_span_crosses_the_break(span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"one side of the <break>"):
        BUILDER.document([7, 8, 9], [span])


def test_random_spans_are_cm3s() -> None:
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(3000):
        spans = random_spans(30, 64, rng)
        counts.append(len(spans))
        assert spans == sorted(spans)
        assert all(0 <= first < stop <= 95 and not first <= 30 < stop for first, stop in spans)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert min(counts) == 1
    assert np.mean([count == 1 for count in counts]) > 2 * math.exp(-1) - 0.03  # Poisson's 0 and 1, and what overlaps
    assert max(counts) > 2
    assert all(span == (0, 1) or span[0] > 1 for span in random_spans(1, 4, rng))


def test_every_token_of_a_frame_has_a_place_of_its_own() -> None:
    rows = [BUILDER.document([7, 8, 9]), BUILDER.answered([7, 8, 9, 10, 11, 12], [7, 8]), BUILDER.edited([7])]
    for row in rows:
        places = [token.place for token in row]
        assert len(set(places)) == len(places)
        assert max(places) < BUILDER.frame.length
    assert [token.place for token in rows[0] if token.id < 0] == [token.place for token in rows[2] if -4 <= token.id < 0]
    assert len(rows[1]) == 1 + 5 + 1 + 4 + 1 + 2 + 1  # the prompt is cut to what the frame holds


# ------------------------------------------------------------------------------------------------------- objective


@FRAMED
def test_loss_is_next_token_prediction_over_the_whole_sequence(framed: bool) -> None:
    """One token at a time, without batch, padding or cache."""
    model = _model(framed=framed)
    samples = _samples(4)
    batch = model.collate(samples, np.random.default_rng(1))
    losses = model(batch)
    total, count = 0.0, 0
    codes = model.image_tokenizer.tokens([sample.image for sample in samples])
    for row in range(4):
        length = int((batch["kinds"][row] != Kind.NOTHING).sum())
        ids = [int(i) if i >= 0 else model.vocabulary.image.start + int(codes[row][-1 - i]) for i in batch["ids"][row][:length]]
        places = batch["places"][row][:length] + 2 * model.frame.length if framed else torch.arange(length)
        for end in range(1, length):
            state = model.decoder(torch.tensor([ids[:end]]), places[None, :end])[0, -1]
            total -= model.decoder.logits(state).log_softmax(dim=0)[ids[end]].item()
            count += 1
    assert losses.total.item() == pytest.approx(total / count, rel=1e-4)


def test_weights_are_of_what_a_token_is() -> None:
    kinds = torch.tensor([[Kind.NOTHING, Kind.PROMPT, Kind.WRITTEN, Kind.DRAWN, Kind.UNCONDITIONAL]])
    covered = torch.tensor([[0.0, 0.0, 0.0, 0.5, 1.0]])
    assert Weights().of(kinds, covered).tolist() == [[0, 1, 1, 1, 1]]
    weights = Weights(prompt=0.25, written=4, drawn=2, unconditional=0.5, objects=3)
    assert weights.of(kinds, covered).tolist() == [[0, 0.25, 4, 5, 2]]


def test_objects_boxes_weigh_on_the_cells_they_cover() -> None:
    model = _model()
    thing = Object("square", (0, 0, 6, 4))  # one cell of 4 x 4 whole, half of the next
    batch = model.collate([replace(_samples(1)[0], objects=(thing,))])
    assert batch["covered"][0].tolist() == [1.0, 0.5, *[0.0] * 14]


def test_terms_and_the_z_loss() -> None:
    model = _model()
    batch = model.collate(_samples(4), np.random.default_rng(1))
    plain = model(batch)
    assert plain.terms.keys() == {"text", "image", "written", "drawn"}
    assert plain.terms["image"].item() == pytest.approx(plain.chance["image"], rel=0.3)  # nothing is learned yet
    model.config = replace(model.config, z_loss=0.1)
    stabilised = model(batch)
    logits = model.decoder.logits(model.decoder(_ids(model, batch)[:, :-1], batch["places"][:, :-1] + 2 * model.frame.length))
    expected = 0.1 * logits.logsumexp(dim=-1)[batch["kinds"][:, 1:] != Kind.NOTHING].square().mean()
    assert stabilised.terms["z"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert stabilised.total.item() == pytest.approx(plain.total.item() + expected.item(), rel=1e-4)


def test_the_loss_does_not_depend_on_how_many_logits_are_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    model.config = replace(model.config, z_loss=0.1)
    batch = model.collate(_samples(4), np.random.default_rng(1))
    found = []
    for positions in (10_000, 7):
        monkeypatch.setattr("models.cm3leon.objective.PIECE_ON_CPU", positions)
        model.zero_grad()
        losses = model(batch)
        losses.total.backward()
        found.append([losses.total, *losses.terms.values(), *(parameter.grad for parameter in model.decoder.parameters())])
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=1e-5)


def test_only_the_decoder_learns_and_micro_batches_change_nothing() -> None:
    model = _model()
    batch = model.collate(_samples(6), np.random.default_rng(1))
    model(batch).total.backward()
    whole = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert whole.keys() == {name for name, _ in model.named_parameters() if name.startswith("decoder.")}
    features = [model.encode({name: rows[part] for name, rows in batch.items()}) for part in (slice(0, 2), slice(2, 6))]
    joined = {name: torch.cat([feature[name] for feature in features]) for name in features[0]}
    model.zero_grad()
    model.objective(joined).total.backward()
    for name, parameter in model.decoder.named_parameters():
        assert parameter.grad is not None
        assert_close(parameter.grad, whole[f"decoder.{name}"], name)


# ------------------------------------------------------------------------------------------------------- retrieval


def test_search_is_exact_and_skips_what_gives_the_answer_away() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(40, 6, generator=generator), dim=1)
    vectors[7] = F.normalize(vectors[3] + 0.02 * torch.randn(6, generator=generator), dim=0)  # nearly the same document twice
    memory = Memory(50, 6, text=3, cells=2)
    memory.add(vectors, torch.zeros(40, 3), torch.zeros(40, 2), torch.arange(40) + 100)
    held = memory.vectors[:40].float()
    queries = F.normalize(torch.randn(9, 6, generator=generator), dim=1)
    queries[0], queries[1] = held[5], F.normalize(held[3] + 0.5 * held[20], dim=0)
    found = memory.search(queries, 3, skip_above=0.95)
    for query, row in zip(queries, found.tolist(), strict=True):
        chosen: list[int] = []
        for index in (held @ query).argsort(descending=True).tolist():
            too_near = held[index] @ query > 0.95 or any(held[index] @ held[other] > 0.95 for other in chosen)
            if not too_near and len(chosen) < 3:
                chosen.append(index)
        assert row == chosen
    assert 5 not in found[0]
    best = found[2, 0]
    own = torch.full((9,), 100 + int(best))
    assert best not in memory.search(queries, 3, skip_above=0.95, own=own)
    assert torch.equal(memory.search(queries[2:3], 2, skip_above=0.95, own=own[:1])[0], found[2, 1:])
    assert not {3, 7} <= set(found[1].tolist())


def test_an_empty_memory_finds_nothing_and_a_full_one_takes_no_more() -> None:
    memory = Memory(5, 4, text=3, cells=2)
    assert memory.search(torch.randn(2, 4), 2, skip_above=0.9).tolist() == [[-1, -1], [-1, -1]]
    memory.add(torch.eye(4), torch.zeros(4, 3), torch.zeros(4, 2), torch.arange(4))
    memory.add(torch.eye(4), torch.ones(4, 3), torch.ones(4, 2), torch.arange(4))
    assert int(memory.filled) == 5
    assert memory.texts[4].tolist() == [1, 1, 1]


@FRAMED
def test_retrieved_documents_come_first_and_count_in_the_loss(framed: bool) -> None:
    model = _model(framed=framed, documents=2)
    model.remember([_samples(8, seed=3), _samples(8, seed=4)])
    assert int(model.memory.filled) == 16
    batch = model.collate(_samples(3), np.random.default_rng(1))
    alone_ = model.encode(batch)
    batch["documents"][:] = 2
    torch.manual_seed(0)
    together = model.encode(batch)
    assert ((together["image_tokens"] - alone_["image_tokens"]) == 2 * model.cells).all()
    assert (together["weight"] > alone_["weight"] + 2 * model.cells).all()

    rows = model.memory.search(model.retriever.encode_text(["a red square"]), 2, skip_above=0.999)
    assert (rows >= 0).all()
    before = model.before(rows)[0]
    texts = [TOKENIZER.decode([int(i) for i in model.memory.texts[row] if i >= 0]) for row in rows[0]]
    ids = [token.id for token in before]
    assert ids.count(TOKENIZER.end) == ids.count(model.vocabulary.break_) == 2
    assert TOKENIZER.decode(ids[1 : ids.index(model.vocabulary.break_)]) == texts[0]
    assert all(-2 * model.frame.length <= token.place < 0 for token in before)
    assert len({token.place for token in before}) == len(before)
    assert model.draw(["a red square"], documents=2)[0].shape == (16, 16, 3)
    with pytest.raises(ValueError, match="3 documents do not fit"):
        model.draw(["a red square"], documents=3)


def test_query_dropout_leaves_tokens_out_of_the_query_alone() -> None:
    model = _model()
    samples = _samples(40)
    batch = model.collate(samples, np.random.default_rng(0))
    kept = (batch["query"] >= 0).sum() / sum(len(model.collate.text(sample.captions[0])) for sample in samples)
    assert 0.7 < kept < 0.9
    assert ((batch["kinds"] == Kind.PROMPT) | (batch["kinds"] == Kind.WRITTEN)).sum() > (batch["query"] >= 0).sum()


def test_what_is_adopted_is_part_of_the_model_and_frozen() -> None:
    model = CM3leon(CONFIG, TOKENIZER)
    modules = _modules()
    model.adopt(modules)
    for name, module in modules.items():
        state = dict(getattr(model, name).state_dict())
        assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())
        assert not any(parameter.requires_grad for parameter in getattr(model, name).parameters())
    again = CM3leon(model.config, TOKENIZER)
    again.load_state_dict(model.state_dict())
    other = VQ(replace(CONFIG.image_tokenizer, levels=(4, 4)), TOKENIZER)
    with pytest.raises(ValueError, match="16 codes and 16 cells"):
        CM3leon(CONFIG, TOKENIZER).adopt(modules | {"image_tokenizer": other})


def test_image_tokens_of_like_codes_start_alike() -> None:
    model = _model()
    rows = model.decoder.tokens.weight[model.vocabulary.image].detach()
    codes = model.image_tokenizer.quantiser.lookup(torch.arange(model.vocabulary.images)).float()
    pairs = torch.triu_indices(36, 36, 1)
    distances = torch.stack([torch.cdist(each, each)[pairs[0], pairs[1]] for each in (codes, rows)])
    assert torch.corrcoef(distances)[0, 1] > 0.5


def test_what_does_not_fit_into_the_positions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"raise decoder\.positions"):
        CM3leon(replace(CONFIG, decoder=replace(CONFIG.decoder, positions=100)), TOKENIZER)


# -------------------------------------------------------------------------------------------- reading and writing


@FRAMED
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_drawing_with_a_cache_is_drawing_without(framed: bool, guidance: float) -> None:
    """Token by token, from scratch for each."""
    model = _model(framed=framed)
    randomise(model.decoder, 5)
    texts = ["a red square", "a large blue square on a plain background", ""]
    drawn = model.image_tokenizer.tokens(model.draw(texts, how=Sampling(guidance, temperature=0)))
    for text, codes in zip(texts, _slowly(model, texts, guidance), strict=True):
        row = model.image_tokenizer.tokens(model.image_tokenizer.paint(codes[None]))
        assert torch.equal(row[0], drawn[texts.index(text)]), text


@FRAMED
def test_writing_with_a_cache_is_writing_without(framed: bool) -> None:
    model = _model(framed=framed)
    randomise(model.decoder, 6)
    images = [sample.image for sample in _samples(3)]
    written = model.caption(images)
    for image, text in zip(images, written, strict=True):
        row = model.builder.captioning()
        ids, places = _resolved(model, row, image)
        found: list[int] = []
        while len(found) < model.frame.text:
            places_now = places if framed else list(range(len(ids)))
            logits = model.decoder.logits(model.decoder(torch.tensor([ids]), torch.tensor([places_now]))[0, -1])[: CONFIG.vocab_size]
            logits[[TOKENIZER.pad, 1]] = float("-inf")
            token = int(logits.argmax())
            if token == TOKENIZER.end:
                break
            found.append(token)
            ids, places = [*ids, token], [*places, 2 * model.frame.length + len(found)]
        assert TOKENIZER.decode(found) == text


def test_likelihoods_are_sums_of_log_probabilities() -> None:
    model = _model()
    randomise(model.decoder, 7)
    images = [sample.image for sample in _samples(2)]
    scores = model.score(images, ["a red square", "a large blue square"])
    assert scores.shape == (2,)
    for image, text, score in zip(images, ["a red square", "a large blue square"], scores, strict=True):
        text_ids = TOKENIZER.encode(text)
        ids, places = _resolved(model, model.builder.document(text_ids, [(0, len(text_ids))]), image)
        log_p = model.decoder.logits(model.decoder(torch.tensor([ids]), torch.tensor([places]))[0]).log_softmax(dim=-1)
        last = len(text_ids) + 1  # the end token, too
        assert score.item() == pytest.approx(sum(log_p[-t - 1, ids[-t]].item() for t in range(1, last + 1)), rel=1e-4)
    asked = model.answer_likelihood(images, ["what colour?"] * 2, ["red", "blue"])
    assert (asked < 0).all()
    assert model.answer_likelihood(images[:1], ["what colour?"], ["red"])[0] == pytest.approx(asked[0].item(), rel=1e-4)
    assert model.score(images[1:], ["a large blue square"])[0] == pytest.approx(scores[1].item(), rel=1e-4)
    one, two = images  # a picture is read once for all of its texts, wherever they stand
    mixed = model.score([one, two, one], ["a red square", "a large blue square", "a star"])
    assert mixed[:2].tolist() == pytest.approx(scores.tolist(), rel=1e-4)
    assert mixed[2].item() == pytest.approx(model.score([one], ["a star"]).item(), rel=1e-4)


def test_contrast_allows_what_is_likely_enough() -> None:
    conditional = torch.tensor([[4.0, 3.0, 2.5, -1.0, 0.0]])
    unconditional = torch.tensor([[5.0, 1.0, 2.0, -6.0, 0.0]])
    p, q = conditional.softmax(dim=-1)[0], unconditional.softmax(dim=-1)[0]
    for k in (1, 2, 3):
        kept = p >= 0.3 * p.sort(descending=True).values[k - 1]
        found = contrasted(conditional, unconditional, alpha=0.3, k=k)[0]
        assert torch.equal(found.isfinite(), kept)
        torch.testing.assert_close(found[kept], (p / q).log()[kept])
    assert not found[3].isfinite()  # the best ratio of all, but too unlikely


def test_drawings_depend_on_the_seed_and_are_re_ranked_by_the_retriever() -> None:
    model = _model()
    randomise(model.decoder, 8)
    texts = ["a red square", "a blue square"]
    once, again, other = (model.draw(texts, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(once, other, strict=True))
    rounds = [model.draw(texts, seed=1_000_003 * index) for index in range(4)]
    wanted = model.retriever.encode_text(texts)
    fits = torch.stack([(model.retriever.encode_image(pictures) * wanted).sum(dim=1) for pictures in rounds])
    for place, picture in enumerate(model.draw(texts, seed=0, samples=4)):
        assert np.array_equal(picture, rounds[int(fits[:, place].argmax())][place])
    contrast = model.draw(texts, how=Sampling(contrast_k=2))
    assert [picture.shape for picture in contrast] == [(16, 16, 3)] * 2


def test_filling_changes_the_box_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    randomise(model.decoder, 9)
    images = [sample.image for sample in _samples(2)]
    boxes = [(4.0, 4.0, 12.0, 12.0), (12.0, 0.0, 16.0, 3.0)]
    before = model.image_tokenizer.tokens(images)
    monkeypatch.setattr(model.image_tokenizer, "paint", list)
    filled = model.infill(images, boxes, ["a red square", "a blue square"])
    inside = torch.zeros(2, 4, 4, dtype=torch.bool)  # cells of 4 x 4 pixels
    inside[0, 1:3, 1:3] = inside[1, 0, 3] = True
    for codes, old, box in zip(filled, before, inside.flatten(1), strict=True):
        assert torch.equal(torch.as_tensor(codes)[~box], old[~box])
        assert 0 <= torch.as_tensor(codes).min() <= torch.as_tensor(codes).max() < model.vocabulary.images
    assert not torch.equal(torch.as_tensor(filled[0]), before[0])
    with pytest.raises(ValueError, match="outside of its picture"):
        model.infill(images[:1], [(20.0, 20.0, 30.0, 30.0)], ["a red square"])


def test_image_tokens_in_texts_and_texts_in_pictures_are_impossible() -> None:
    """Even where the decoder wants nothing else."""
    model = _model()
    with torch.no_grad():
        model.decoder.tokens.weight.normal_(std=0.1)
        model.decoder.tokens.weight[model.vocabulary.image] *= 100
    images = [sample.image for sample in _samples(2)]
    assert all(isinstance(text, str) for text in model.caption(images, Decoding(temperature=1.0)))
    with torch.no_grad():
        model.decoder.tokens.weight[model.vocabulary.image] /= 1e4
        model.decoder.tokens.weight[: model.vocabulary.text] *= 100
    assert len(model.draw(["a red square"] * 3)) == 3


@pytest.mark.parametrize(
    "text",
    ["", " ", "square " * 500, "\N{GRINNING FACE} наука \x00\x07", "<end> <break> <mask>"],
    ids=["empty", "blank", "long", "unknown", "marks"],
)
def test_any_text_can_be_drawn_scored_and_asked(text: str) -> None:
    model = _model()
    image = _samples(1)[0].image
    assert model.draw([text])[0].shape == (16, 16, 3)
    assert model.score([image], [text]).isfinite().all()
    assert isinstance(model.answer([image], [text])[0], str)
    assert model.answer_likelihood([image], [text], [text]).isfinite().all()
    assert len(model.edit([image], [text])) == len(model.infill([image], [(0.0, 0.0, 8.0, 8.0)], [text])) == 1


def test_nothing_in_nothing_out() -> None:
    model = _model()
    assert model.draw([]) == model.caption([]) == model.answer([], []) == model.edit([], []) == model.infill([], [], []) == []


# ----------------------------------------------------------------------------------------------------------- tuning


def test_tuning_draws_such_pictures_as_pretraining_does() -> None:
    model = _model()
    model.config = replace(model.config, mix=Mix(alone=1.0, aligned=True))
    model.enter_stage("tuning")
    image = np.full((16, 16, 3), 90, np.uint8)
    image[1:5, 1:5], image[9:15, 8:14] = 200, 20
    things = (Object("square", (1, 1, 5, 5)), Object("square", (8, 9, 14, 15), {"size": "large"}))
    sample = Sample("0", image, ("two squares",), objects=things, questions=(Question("how many?", "two"),))
    rng = np.random.default_rng(0)
    for _ in range(8):
        _, (drawn, _) = model.collate._task(sample, "draw", rng)  # type: ignore[union-attr]
        left, top, right, bottom = drawn.objects[0].box
        assert len(drawn.objects) == 1
        assert drawn.captions in (("a square",), ("a large square",))
        assert ((left + right) / 2 % 4, (top + bottom) / 2 % 4) == (0, 0)
    _, (described, _) = model.collate._task(sample, "describe", rng)  # type: ignore[union-attr]
    assert described is sample


def test_tuning_sees_every_task() -> None:
    model = _model()
    model.enter_stage("tuning")
    thing = Object("square", (4.0, 4.0, 12.0, 12.0), {"colour": "red", "size": "large"})
    sample = replace(_samples(1)[0], objects=(thing,), questions=(Question("what colour is it?", "red"),))
    batch = model.collate([sample] * 60, np.random.default_rng(0))
    heads = {TOKENIZER.decode([i for i in row if 0 <= i < model.vocabulary.text]) for row in batch["ids"].tolist()}
    said = " | ".join(sorted(heads))
    for expected in ("what colour is it? red", INSTRUCTION, "remove the large red square", "add a large red square", sample.captions[0]):
        assert expected in said
    losses = model(batch)
    assert losses.total.isfinite()
    losses.total.backward()
    bare = model.collate([replace(sample, objects=(), questions=())] * 8, np.random.default_rng(0))  # only captions are left
    assert model(bare).total.isfinite()
    with pytest.raises(ValueError, match="pretraining and tuning"):
        model.enter_stage("sft")


def test_objects_can_be_painted_over_and_left_alone() -> None:
    y, x = np.mgrid[:32, :32]
    ground = np.stack([100 + 2 * x, 60 + y, 200 - x - y], axis=-1).astype(np.uint8)
    image = ground.copy()
    image[4:10, 4:10], image[20:28, 18:26] = 255, 0
    things = (
        Object("square", (4, 4, 10, 10), {"colour": "white"}),
        Object("square", (18, 20, 26, 28), {"colour": "black", "size": "large"}),
    )
    sample = Sample("0", image, ("two squares",), objects=things)
    rng = np.random.default_rng(0)
    rest = without(sample, [0], rng)
    assert np.abs(rest.image[:15].astype(int) - ground[:15]).max() <= 2
    assert np.array_equal(rest.image[15:], image[15:])
    assert rest.objects == things[1:]
    left = alone(sample, 1, rng)
    assert left is not None
    assert left.captions == ("a large black square",)
    assert np.abs(left.image[:15].astype(int) - ground[:15]).max() <= 2
    overlapping = replace(sample, objects=(things[0], Object("dot", (8, 8, 14, 14))))
    assert alone(overlapping, 0, rng) is None


@pytest.mark.parametrize(("shape", "box"), [((20, 50), (5.5, 2.0, 30.0, 18.0)), ((16, 16), (0, 0, 16, 15)), ((16, 16), (0, 0, 15, 16))])
def test_an_even_picture_stays_even_where_an_object_is_painted_over(shape: tuple[int, int], box: tuple[float, ...]) -> None:
    image = np.full((*shape, 3), 90, np.uint8)
    left, top, right, bottom = (int(edge) for edge in box)
    image[top:bottom, left:right] = 200
    sample = Sample("a", image, objects=(Object("star", box),))  # type: ignore[arg-type]
    rest = without(sample, [0], np.random.default_rng(0))
    assert rest.image.dtype == np.uint8
    assert abs(rest.image.astype(int) - 90).max() <= 1
    covering = replace(sample, objects=(Object("star", (0, 0, shape[1], shape[0])),))
    assert without(covering, [0], np.random.default_rng(0)) is covering  # nothing is left to continue


def test_shifted_pictures_have_their_object_on_the_grid_and_whole() -> None:
    for left, top in ((3, 5), (1, 2), (19, 19), (10, 6)):
        image = np.full((32, 32, 3), 90, np.uint8)
        image[top : top + 12, left : left + 12] = 200
        shifted = aligned(Sample("0", image, objects=(Object("square", (left, top, left + 12, top + 12)),)), side=4)
        x0, y0, x1, y1 = (int(edge) for edge in shifted.objects[0].box)
        assert ((x0 + x1) / 2 % 8, (y0 + y1) / 2 % 8) == (0, 0)
        assert max(abs(x0 - left), abs(y0 - top)) <= 6
        assert (shifted.image == 200).all(axis=-1).sum() == 144
        assert (shifted.image[y0:y1, x0:x1] == 200).all()
    at_the_edge = Sample("0", image, objects=(Object("square", (0, 0, 12, 32)),))
    assert aligned(at_the_edge, side=4).objects == at_the_edge.objects


@pytest.mark.slow
def test_sixteen_pairs_are_learned_by_heart() -> None:
    torch.manual_seed(0)
    model = _model()
    samples = _samples(16)
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=3e-3)
    for _ in range(400):
        loss = model(model.collate(samples, rng)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.caption([sample.image for sample in samples]) == [sample.captions[0] for sample in samples]
    drawn = model.draw([f"a large {colour} square on a plain background" for colour in COLOURS], how=Sampling(1.0, 0.0))
    for picture, colour in zip(drawn, COLOURS, strict=True):
        fitting = [s.image for s in samples if colour in s.captions[0]]
        assert any(np.array_equal(picture, model.image_tokenizer.reconstruct([image])[0]) for image in fitting)


# ----------------------------------------------------------------------------------------------------------- helpers


def _modules() -> dict[str, torch.nn.Module]:
    torch.manual_seed(1)
    tokenizer, retriever = VQ(CONFIG.image_tokenizer, TOKENIZER), CLIP(CONFIG.retriever, TOKENIZER)
    randomise(tokenizer, 2)
    return {"image_tokenizer": tokenizer.eval(), "retriever": retriever.eval()}


def _model(**changes: object) -> CM3leon:
    torch.manual_seed(0)
    model = CM3leon(replace(CONFIG, **changes), TOKENIZER)  # type: ignore[arg-type]
    model.adopt(_modules())
    return model


def _samples(count: int, seed: int = 0) -> list[Sample]:
    """One square each, of one of four colours, on a ground that differs from picture to picture."""
    rng = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        colour = list(COLOURS)[index % 4]
        image = np.full((16, 16, 3), rng.integers(40, 220), np.uint8)
        top, left = rng.integers(1, 7, size=2)
        image[top : top + 8, left : left + 8] = COLOURS[colour]
        samples.append(Sample(str(index), image, (f"a large {colour} square on a plain background",)))
    return samples


def _ids(model: CM3leon, batch: dict[str, Tensor]) -> Tensor:
    return model._fill(batch["ids"], batch["pixels"])


def _resolved(model: CM3leon, row: Sequence[tuple[int, int, Kind]], image: np.ndarray | None) -> tuple[list[int], list[int]]:
    codes = model.image_tokenizer.tokens([image])[0].tolist() if image is not None else []
    ids = [id_ if id_ >= 0 else model.vocabulary.image.start + codes[-1 - id_] for id_, _, _ in row]
    framed = model.config.framed
    return ids, [place + 2 * model.frame.length if framed else index for index, (_, place, _) in enumerate(row)]


@torch.no_grad()
def _slowly(model: CM3leon, texts: Sequence[str], guidance: float) -> list[Tensor]:
    drawn = []
    for text in texts:
        rows = [model.builder.drawing(TOKENIZER.encode(text) or None), model.builder.drawing(None)]
        codes: list[int] = []
        for cell in range(model.cells):
            logits = []
            for row in rows:
                ids, places = _resolved(model, row, None)
                ids += [model.vocabulary.image.start + code for code in codes]
                if model.config.framed:
                    places += [2 * model.frame.length + model.frame.picture + earlier for earlier in range(cell)]
                else:
                    places = list(range(len(ids)))
                state = model.decoder(torch.tensor([ids]), torch.tensor([places]))[0, -1]
                logits.append(model.decoder.logits(state)[model.vocabulary.image])
            codes.append(int((logits[1] + guidance * (logits[0] - logits[1])).argmax()))
        drawn.append(torch.tensor(codes))
    return drawn
