from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import models
from eval import EvalError
from eval.adapters.scorers import EmbeddingScorer
from eval.harness.source import in_memory
from eval.judges.clipscore import NamedCLIP, clip_beside, named_clip
from eval.run import evaluate
from models.clip import CLIP, CLIPConfig
from models.shared.text import BPETokenizer
from tests.eval import fakes


class Writes:
    """Caption i of picture i; of any other picture (a blank one) "nothing"."""

    def __init__(self, captions: list[str]) -> None:
        self.captions = captions

    def caption(self, images: list[np.ndarray]) -> list[str]:
        numbers = [fakes.number_of(image) for image in images]
        return [self.captions[number] if number < len(self.captions) else "nothing" for number in numbers]


def judge(model: Any, prefix: str = "") -> NamedCLIP:
    return NamedCLIP("fake", "w", prefix, EmbeddingScorer(model))


def evaluated(clip: NamedCLIP | None, captions: list[str], samples: list[Any], out: Path, **options: Any) -> dict[str, Any]:
    source = in_memory("fakes", {"test": samples})
    source.clip = clip
    settings: dict[str, Any] = {"about": fakes.ABOUT, "weights": "w", "tasks": ["clipscore"], "console": Console(quiet=True)} | options
    return evaluate(Writes(captions), Writes([]), source, out, **settings)


def test_scores_by_hand() -> None:
    """Pictures look along the first axis, texts along their angle in degrees: cosines of 1, 1/2 and below 0."""
    turned = fakes.Embeds(lambda number: [1.0, 0.0], lambda text: [np.cos(np.radians(float(text))), np.sin(np.radians(float(text)))])
    clip = judge(turned)
    pictures = [fakes.picture(i) for i in range(4)]
    assert clip.clip_score(pictures, ["0", "60", "-60", "120"]) == pytest.approx([2.5, 1.25, 1.25, 0])
    # The best reference counts, as the cosine that it is: 60 degrees off is 1/2, 120 degrees off is 0.
    found = clip.ref_clip_score(pictures, ["0", "60", "60", "120"], [["0", "90"], ["120", "-180"], ["180"], ["120"]])
    assert found == pytest.approx([2 * 2.5 * 1 / 3.5, 2 * 1.25 * 0.5 / 1.75, 0, 0], abs=1e-6)


def test_published_clips_read_the_papers_prompt() -> None:
    read: list[str] = []
    model = fakes.Embeds(lambda number: [1.0, 0.0], lambda text: [read.append(text) or 1.0, 0.0])
    judge(model, "A photo depicts ").ref_clip_score([fakes.picture(0)], ["a dog"], [["a cat"]])
    assert sorted(set(read)) == ["A photo depicts a cat", "A photo depicts a dog"]


def test_perfect_wrong_and_shuffled(tmp_path: Path) -> None:
    samples = fakes.captioned(8)
    clip = judge(fakes.knowing(samples))
    own = [sample.captions[1] for sample in samples]
    result = evaluated(clip, own, samples, tmp_path / "own")
    assert fakes.value(result, "clipscore", "CLIPScore") == pytest.approx(2.5)
    assert fakes.value(result, "clipscore", "RefCLIPScore") == pytest.approx(2 * 2.5 / 3.5)
    # The captions of other pictures, held against the samples' own.
    assert fakes.value(result, "clipscore", "CLIPScore", "shuffled images") == 0
    assert fakes.cell(result, "clipscore", "CLIPScore")["note"] == "by fake"
    result = evaluated(clip, own[1:] + own[:1], samples, tmp_path / "others")
    assert fakes.value(result, "clipscore", "CLIPScore") == fakes.value(result, "clipscore", "RefCLIPScore") == 0


def test_batches_change_nothing(tmp_path: Path) -> None:
    samples = fakes.captioned(20)
    captions = [sample.captions[i % 3] for i, sample in enumerate(samples)]
    found = [evaluated(judge(fakes.noisy()), captions, samples, tmp_path / str(size), batch_size=size)["cells"] for size in (1, 7, 64)]
    assert found[0] == found[1] == found[2]


def test_without_a_clip_there_is_a_reason_and_nothing_that_sets_runs_apart(tmp_path: Path) -> None:
    samples = fakes.captioned(4)
    without = evaluated(None, ["a"] * 4, samples, tmp_path / "without")
    cell = fakes.cell(without, "clipscore", "CLIPScore")
    assert (cell["value"], cell["status"]) == (None, "not run")
    assert "make train-clip" in cell["note"]
    assert "clipscore" not in without["prompts"]
    ours, other = (evaluated(replace(judge(fakes.noisy()), weights=weights), ["a"] * 4, samples, tmp_path / weights) for weights in "ab")
    assert ours["prompts"]["clipscore"] != other["prompts"]["clipscore"]
    # A dual encoder writes no captions: whichever CLIP is beside it, its other numbers can be compared.
    dual = fakes.run(fakes.noisy(), {"test": samples}, tmp_path / "dual")
    assert {"captioning", "clipscore"} & set(dual["prompts"]) == set()
    assert set(json.loads((tmp_path / "dual" / "fakes" / "prompts.json").read_text())) == set(dual["prompts"])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    tokenizer = BPETokenizer.train(["a red star", "a blue moon"], 300)
    torch.manual_seed(0)
    models.save(CLIP(replace(CLIPConfig.tiny(), vocab_size=tokenizer.vocab_size), tokenizer), tmp_path / "clip-tiny-s0")
    return tmp_path / "clip-tiny-s0"


def test_a_run_folder_judges_under_its_name_and_weights(run: Path) -> None:
    clip = named_clip(str(run))
    image = np.full((64, 64, 3), 200, np.uint8)
    assert (clip.name, clip.prefix) == ("clip-tiny-s0", "")
    model = models.load(run)
    cosine = (model.encode_image([image]) @ model.encode_text(["a red star"]).T).item()
    assert clip.clip_score([image], ["a red star"]).item() == pytest.approx(2.5 * max(cosine, 0), abs=1e-6)
    assert named_clip(str(run)).weights == clip.weights
    with torch.no_grad():
        next(iter(model.parameters())).add_(1.0)
    models.save(model, run)
    assert named_clip(str(run)).weights != clip.weights


def test_the_clip_beside_a_run(run: Path) -> None:
    assert clip_beside(run.with_name("coca-tiny-s2")) == run
    assert clip_beside(run) == run
    for other in ("coca-small-s0", "coca-tiny-flickr8k-s0", "my-idea"):
        assert clip_beside(run.with_name(other)) is None
    lit = run.with_name("lit-tiny-s0")
    lit.mkdir()
    (lit / "model.safetensors").touch()
    assert clip_beside(run.with_name("coca-tiny-s2")) == run
    (run / "model.safetensors").unlink()  # an unfinished training
    assert clip_beside(run.with_name("coca-tiny-s2")) == lit
    (lit / "model.safetensors").unlink()
    assert clip_beside(run.with_name("coca-tiny-s2")) is None


def test_a_judge_that_is_none_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no model\.json"):
        named_clip(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="open_clip has no model"):
        named_clip("open_clip:ViT-X-99/nobody")
    monkeypatch.setattr(models, "load", lambda *_: torch.nn.Linear(1, 1))
    with pytest.raises(EvalError, match="Linear does not embed images and texts"):
        named_clip(str(run))
