"""MAGIC's search is derived a second time from its formula, one image at a time and without a cache; a search has to write the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config

import models
from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from models import published
from models.clip import CLIP, LockedCLIP, LockedCLIPConfig
from models.lm import LM, LMConfig
from models.magic import MAGIC, LockedMAGIC, LockedMAGICConfig, MAGICConfig, Search
from models.magic.search import Eyes, degeneration, magic_score, magic_search
from models.shared.backbones import LanguageConfig
from models.shared.generate import not_text
from models.shared.text import BPETokenizer, HubTokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from tests.hub import connect, disconnect

LLAMA = LanguageConfig(width=32, depth=2, heads=2, hidden=48)
GPT2 = LanguageConfig(architecture=json.dumps({"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}))
VISION = VisionConfig(width=32, depth=1, heads=2, activation="relu", image_size=64, patch_size=16, stem="conv", pool="avg")
CLIP_NAME = "open_clip:ViT-B-32/laion2b_s34b_b79k"
SEARCHES = [Search(5, 0.1, 2.0), Search(5, 0.6, 0.3), Search(4, 0.4, 0.0), Search(4, 0.0, 0.0), Search(4, 0.2, 1.5, "cosine")]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [make_sample(PRESETS["tiny"], "train", index) for index in range(40)]


@pytest.fixture(scope="module")
def images(samples: list[Sample]) -> list[np.ndarray]:
    return [sample.image for sample in samples[:4]]


@pytest.fixture(scope="module")
def words(samples: list[Sample]) -> BPETokenizer:
    return BPETokenizer.train([text for sample in samples for text in sample.captions], 320)


@pytest.fixture(scope="module")
def pieces(samples: list[Sample]) -> BPETokenizer:
    """CLIP's tokens are not the language model's."""
    return BPETokenizer.train([text for sample in samples[:10] for text in sample.captions], 280)


@pytest.fixture(scope="module")
def clip(pieces: BPETokenizer) -> CLIP:
    torch.manual_seed(1)
    config = MAGICConfig.tiny().clip
    text = TransformerConfig(width=32, depth=1, heads=2, activation="relu")
    return randomised(CLIP(replace(config, vision=VISION, text=text, embed_dim=24, vocab_size=pieces.vocab_size), pieces), 0.3)


def build(language: LanguageConfig, words: BPETokenizer, clip: CLIP, **changes: Any) -> MAGIC:
    sizes = json.loads(language.architecture) | {"vocab_size": words.vocab_size} if language.architecture else {}
    language = replace(language, architecture=json.dumps(sizes) if sizes else "")
    torch.manual_seed(0)
    lm = randomised(LM(LMConfig(language=language, vocab_size=words.vocab_size), words), 0.3)
    config = replace(MAGICConfig.tiny(), language=language, vocab_size=words.vocab_size, search=Search(8, 0.1, 2.0), limit=9)
    model = MAGIC(replace(config, **changes), words)
    model.adopt({"clip": clip, "language_model": lm})
    return model.eval()


def randomised(model: Any, std: float) -> Any:
    """The libraries' initialisation predicts the last token again and again, and looks at all pictures alike."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.add_(std * torch.randn(parameter.shape, generator=generator))
    return model.eval()


# ------------------------------------------------------------------------------- the search, derived from its formula


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def last_states(model: MAGIC, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Of a text read from its beginning: the states after the last norm `[T, D]`, and the probabilities of the next token `[V]`."""
    with torch.no_grad():
        states = model.language.base_model(torch.tensor([list(ids)])).last_hidden_state
        logits = model.language.get_output_embeddings()(states)[0, -1].double()
    return states[0].double().numpy(), logits.softmax(dim=-1).numpy()


def derived(model: MAGIC, image: np.ndarray, prompt: Sequence[int], end: int, limit: int, how: Search) -> list[int]:
    """One image, one token at a time, everything read again from its beginning."""
    with torch.no_grad():
        seen = model.clip.encode_image([image])[0].numpy()
    scale, forbidden = model.clip.logit_scale.exp().item(), not_text(model.tokenizer)
    written: list[int] = []
    for _ in range(limit):
        said, probability = last_states(model, [*prompt, *written])
        order = [token for token in np.argsort(-probability, kind="stable").tolist() if token not in forbidden][: how.k]
        last = [last_states(model, [*prompt, *written, token])[0][-1] for token in order]
        penalty = [max(cosine(state, past) for past in said) for state in last]
        with torch.no_grad():
            texts = [model.tokenizer.decode([*written, token][-model.config.seen :]) for token in order]
            fit = np.array([cosine(feature, seen) for feature in model.clip.encode_text(texts).numpy()])
        weights = np.exp(scale * fit - (scale * fit).max())
        magic = weights / weights.sum() if how.score == "softmax" else fit
        value = [
            (1 - how.alpha) * probability[token] - how.alpha * p + how.beta * m for token, p, m in zip(order, penalty, magic, strict=True)
        ]
        token = order[int(np.argmax(value))]
        if token == end:
            return written
        written.append(token)
    return written


def searched(
    model: MAGIC, images: Sequence[np.ndarray], prompts: Sequence[Sequence[int]], end: int, limit: int, how: Search
) -> list[list[int]]:
    eyes = Eyes(model.clip.encode_image(images), model.clip.logit_scale.exp().item(), model._features)
    return magic_search(model.language, prompts, eyes, end=end, limit=limit, never=not_text(model.tokenizer), how=how)


@pytest.mark.parametrize("how", SEARCHES, ids=str)
@pytest.mark.parametrize("language", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_it_writes_what_the_formula_says(
    language: LanguageConfig, how: Search, words: BPETokenizer, clip: CLIP, images: list[np.ndarray]
) -> None:
    """Prompts of several lengths in one batch are padded; some images share one, and texts end at different places."""
    model = build(language, words, clip)
    prompts = [[1], [1, *words.encode("a red star and")], [1], [1, *words.encode("there is")]]
    free = searched(model, images, prompts, end=2, limit=5, how=how)
    end = free[0][2]  # texts of random weights would hardly ever end: let a token that occurs be the end
    written = searched(model, images, prompts, end=end, limit=5, how=how)
    assert written == [derived(model, image, prompt, end, 5, how) for image, prompt in zip(images, prompts, strict=True)]
    assert len({len(tokens) for tokens in written}) > 1
    assert len(set(map(tuple, written))) >= 3
    assert not {token for tokens in written for token in tokens} & {end, *not_text(words)}


def test_penalty_and_magic_score_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    states, said = (torch.nn.functional.normalize(torch.tensor(rng.normal(size=(2, n, 6))), dim=-1) for n in (4, 5))
    real = torch.tensor([[False, False, True, True, True], [True] * 5])
    penalty = degeneration(states, said, real)
    for p in range(2):
        for k in range(4):
            expected = max(cosine(states[p, k].numpy(), said[p, t].numpy()) for t in range(5) if real[p, t])
            assert penalty[p, k].item() == pytest.approx(expected, abs=1e-12)
    below = degeneration(states, -states[:, :1].expand(2, 5, 6), real)
    assert below[:, 0] == pytest.approx(-1.0), "a negative similarity is not outdone by what is padding"
    fit = torch.tensor(rng.uniform(-1, 1, size=(3, 4)))
    share = np.exp(20 * fit.numpy()) / np.exp(20 * fit.numpy()).sum(axis=1, keepdims=True)
    assert np.allclose(magic_score(fit, 20.0, Search()).numpy(), share, atol=1e-12)
    assert torch.equal(magic_score(fit, 20.0, Search(score="cosine")), fit)


def test_without_weights_it_is_greedy_and_without_beta_blind(words: BPETokenizer, clip: CLIP, images: list[np.ndarray]) -> None:
    model = build(LLAMA, words, clip, limit=12)
    lm = LM(LMConfig(language=LLAMA, vocab_size=words.vocab_size), words)
    lm.language.load_state_dict(model.language.state_dict())
    prompts = ["", "a red star and", "two", ""]
    greedy = lm.eval().write(prompts, limit=12)
    assert model.write(images, prompts, how=Search(4, 0, 0)) == greedy
    assert model.write(images[::-1], prompts, how=Search(1, 0.7, 2)) == greedy, "of one candidate there is no choice"
    blind = model.write(images, prompts, how=Search(8, 0.6, 0))
    assert blind == model.write(images[::-1], prompts, how=Search(8, 0.6, 0))
    assert blind != greedy
    assert model.write(images, prompts, how=Search(8, 0.6, 1)) != blind


def test_a_caption_does_not_depend_on_its_batch_and_its_beginning_is_read_once(
    words: BPETokenizer, clip: CLIP, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(LLAMA, words, clip)
    alone = [model.caption([image])[0] for image in images]
    assert len(set(alone)) > 1
    rows, texts = [], []
    forward, encode = model.language.model.forward, model.clip.encode_text

    def reading(*args: Any, **options: Any) -> Any:
        rows.append(len(options["position_ids"]))
        return forward(*args, **options)

    def looking(given: Sequence[str]) -> Any:
        texts.append(len(given))
        return encode(given)

    monkeypatch.setattr(model.language.model, "forward", reading)
    monkeypatch.setattr(model.clip, "encode_text", looking)
    assert model.caption([*images, *images]) == alone + alone
    k = model.config.search.k
    assert rows[:2] == [1, k], "eight images, one text so far"
    assert texts == rows[1:], "one call for the candidates of all images, each text once"
    assert max(texts) <= len(set(alone)) * k
    assert model.write(images, ["a red"] * 4) == [model.write([image], ["a red"])[0] for image in images]


def test_clip_reads_what_is_written_and_not_the_prompt(words: BPETokenizer, clip: CLIP, images: list[np.ndarray], monkeypatch: Any) -> None:
    model = build(LLAMA, words, clip, seen=3)
    given: list[list[int]] = []
    read: list[str] = []
    encode = model.clip.encode_text
    monkeypatch.setattr(model, "_features", lambda texts: (given.extend(texts), MAGIC._features(model, texts))[1])
    monkeypatch.setattr(model.clip, "encode_text", lambda texts: (read.extend(texts), encode(texts))[1])
    model.write(images[:1], ["two objects: a red star"])
    lengths = [len(tokens) for tokens in given]
    assert lengths == [length for length in range(1, max(lengths) + 1) for _ in range(8)]
    assert max(lengths) > 3
    assert read == [words.decode(tokens[-3:]) for tokens in given]


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("wrong", [{"k": 0}, {"alpha": -0.1}, {"alpha": 1.1}, {"beta": -1.0}])
def test_weights_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Search(**wrong)


def test_bad_input_is_named(words: BPETokenizer, clip: CLIP, images: list[np.ndarray]) -> None:
    model = build(LLAMA, words, clip)
    assert model.caption([]) == []
    assert model.write([], []) == []
    possible = words.vocab_size - 2
    with pytest.raises(ValueError, match=rf"k = {possible + 1} candidates of a vocabulary in which {possible} tokens"):
        model.caption(images[:1], how=Search(k=possible + 1))
    assert len(model.caption(images[:1], how=Search(k=possible))) == 1
    with pytest.raises(ValueError, match="4 images and 1 prompts"):
        model.write(images, ["a"])
    with pytest.raises(ValueError, match="no tokens"):
        searched(model, images[:1], [[]], end=2, limit=3, how=Search(3))
    assert searched(model, images[:2], [[1], [1]], end=2, limit=0, how=Search(3)) == [[], []]
    with torch.no_grad():
        model.language.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        model.caption(images[:1])


# ---------------------------------------------------------------------------------------- what it is made of


def test_it_takes_over_both_models_with_both_tokenizers_and_trains_nothing(
    words: BPETokenizer, pieces: BPETokenizer, clip: CLIP, images: list[np.ndarray], tmp_path: Path
) -> None:
    model = build(LLAMA, words, clip)
    assert not [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert not any(module.training for module in model.modules())
    captions = model.caption(images)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(model.collate([Sample(key="0", image=images[0], captions=("a red star",))]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    models.save(model, tmp_path)
    found: Any = models.load(tmp_path)
    assert found.caption(images) == captions
    assert found.clip.tokenizer.vocab_size == pieces.vocab_size != words.vocab_size
    assert torch.equal(found.clip.encode_text(["a red star"]), clip.encode_text(["a red star"]))
    assert json.loads((tmp_path / "model.json").read_text())["paradigm"] == "training-free"


def test_it_looks_through_a_clip_only(words: BPETokenizer, clip: CLIP) -> None:
    model = build(LLAMA, words, clip)
    with pytest.raises(ValueError, match="must be CLIP, not LM"):
        model.adopt({"clip": LM(LMConfig(language=LLAMA, vocab_size=words.vocab_size), words)})


def test_named_models_are_fetched_up_to_the_wire(
    words: BPETokenizer, pieces: BPETokenizer, clip: CLIP, images: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-2 as it is, GPT-2 adapted to captions by `LM`, and a CLIP by its name."""
    sizes = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=words.vocab_size, n_positions=64, bos_token_id=2, eos_token_id=2)
    asked = connect(monkeypatch, tmp_path, {"gpt2": sizes}, words)
    monkeypatch.setattr(models, "load", lambda name: asked.append(name) or clip)
    tokenizer, language = HubTokenizer("gpt2"), LanguageConfig(source="gpt2")
    config = MAGICConfig(clip_source=CLIP_NAME, language=language, vocab_size=words.vocab_size, search=Search(5), limit=6)
    model = MAGIC(config, tokenizer)
    assert model.fetch() == {"clip": CLIP_NAME, "language": "gpt2"}
    assert asked.count(CLIP_NAME) == asked.count("weights gpt2") == 1
    assert model.clip.tokenizer.vocab_size == pieces.vocab_size
    assert len(model.caption(images)) == len(images)
    adapted = LM(LMConfig(language=language, vocab_size=words.vocab_size).describing(), tokenizer)
    assert adapted.fetch() == {"language": "gpt2"}
    assert all(torch.equal(one, other) for one, other in zip(adapted.language.parameters(), model.language.parameters(), strict=True))
    assert not {name for name, parameter in adapted.named_parameters() if not parameter.requires_grad}


def test_out_of_reach_it_says_what_to_do(words: BPETokenizer, clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    disconnect(monkeypatch)

    def nobody(*_: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(published, "download_pretrained", nobody)
    model = build(LLAMA, words, clip)
    assert model.fetch() == {}
    model.config = replace(model.config, clip_source=CLIP_NAME)
    with pytest.raises(ConnectionError, match=r"laion2b_s34b_b79k is not in the cache.*copy the folder here"):
        model.fetch()
    with pytest.raises(ConnectionError, match=r"gpt2.*make train-lm"):
        MAGIC(replace(model.config, language=LanguageConfig(source="gpt2")), words)


# --------------------------------------------------------------------------------------------- through locked encoders


def test_it_sees_through_a_clip_of_locked_encoders_and_is_loaded_with_it(
    words: BPETokenizer, clip: CLIP, samples: list[Sample], images: list[np.ndarray], tmp_path: Path
) -> None:
    special = {"cls_token": "<start>", "sep_token": "<end>", "pad_token": "<pad>"}
    theirs = HubTokenizer("bert", {"tokenizer": "bert", "special": special, "fast": json.loads(words.fast.to_str())})
    torch.manual_seed(2)
    eyes = randomised(LockedCLIP(LockedCLIPConfig.tiny(), theirs), 0.3)
    config = replace(LockedMAGICConfig.tiny(), language=LLAMA, vocab_size=words.vocab_size)
    model = LockedMAGIC(config, words).eval()
    model.adopt({"clip": eyes, "language_model": randomised(LM(LMConfig(language=LLAMA, vocab_size=words.vocab_size), words), 0.3)})
    assert torch.equal(model.clip.encode_image(images), eyes.encode_image(images))
    written = model.caption(images)
    assert any(written)
    models.save(model, tmp_path / "run")
    loaded: Any = models.load(tmp_path / "run")
    assert isinstance(loaded.clip, LockedCLIP)
    assert loaded.caption(images) == written
    with pytest.raises(ValueError, match="MAGIC's image-text model must be LockedCLIP, not CLIP"):
        model.adopt({"clip": clip})
