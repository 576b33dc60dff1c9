from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import models
from eval import EvalError
from eval.adapters.scorers import AnswerLikelihoods, EmbeddingScorer
from eval.harness.source import in_memory
from eval.judges.clipscore import NamedCLIP
from eval.judges.vqascore import Judge, named_judge, seed_zero
from eval.run import evaluate
from eval.tasks import drawing
from tests.eval import fakes
from tests.eval.test_drawing import SPLITS, Draws

SAMPLES = fakes.captioned(12)


class Weighs:
    """p("yes") is 0.9 where a picture's number is that of the text in the question, else 0.2."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def answer_likelihood(self, images: Sequence[np.ndarray], questions: Sequence[str], answers: Sequence[str]) -> torch.Tensor:
        assert set(answers) == {"yes"}
        self.asked += questions
        shown = [
            f'does this figure show "caption 0 of {fakes.number_of(image)}"?' == question
            for image, question in zip(images, questions, strict=True)
        ]
        return torch.tensor([0.9 if yes else 0.2 for yes in shown]).log()


class DrawsCaptions:
    """Draws picture i for "caption 0 of i", moved by `shift`."""

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift

    def draw(self, texts: Sequence[str], *, seed: int = 0) -> list[np.ndarray]:
        return [fakes.picture(int(text.split()[-1]) + self.shift) for text in texts]


def evaluated(out: Path, clip: Any, judge: Any, model: Any, **options: Any) -> dict[str, Any]:
    source = in_memory("fakes", {"test": SAMPLES})
    source.clip, source.judge = clip, judge
    settings: dict[str, Any] = {"about": fakes.ABOUT, "weights": "w", "tasks": ["drawing_scores"], "console": Console(quiet=True)} | options
    return evaluate(model, DrawsCaptions(5), source, out, **settings)


def clip() -> NamedCLIP:
    return NamedCLIP("fake clip", "w", "", EmbeddingScorer(fakes.knowing(SAMPLES)))


def judge() -> Judge:
    return Judge("fake judge", "w", AnswerLikelihoods(Weighs()))


def test_drawings_of_captions_are_judged_where_no_recogniser_can(tmp_path: Path) -> None:
    result = evaluated(tmp_path, clip(), judge(), DrawsCaptions())
    assert fakes.value(result, "drawing_scores", "CLIPScore") == pytest.approx(2.5)
    assert fakes.value(result, "drawing_scores", "VQAScore") == pytest.approx(0.9)
    assert fakes.value(result, "drawing_scores", "CLIPScore", "untrained") == 0
    assert fakes.value(result, "drawing_scores", "VQAScore", "untrained") == pytest.approx(0.2)
    assert fakes.cell(result, "drawing_scores", "VQAScore")["note"] == "by fake judge"
    assert fakes.cell(result, "drawing_scores", "CLIPScore", "oracle")["status"] == "n/a"
    assert len(list((tmp_path / "fakes" / "drawing_scores.test.model").glob("*.png"))) == len(SAMPLES)


def test_without_a_judge_there_is_a_reason_and_no_number(tmp_path: Path) -> None:
    result = evaluated(tmp_path, None, judge(), DrawsCaptions())
    assert fakes.cell(result, "drawing_scores", "CLIPScore")["status"] == "not run"
    assert "make train-clip" in fakes.cell(result, "drawing_scores", "CLIPScore")["note"]
    assert fakes.value(result, "drawing_scores", "VQAScore") == pytest.approx(0.9)
    result = evaluated(tmp_path / "none", None, None, DrawsCaptions())
    assert "--judge RUN" in fakes.cell(result, "drawing_scores", "VQAScore")["note"]


def test_the_judges_are_part_of_the_settings(tmp_path: Path) -> None:
    first = evaluated(tmp_path, clip(), judge(), DrawsCaptions())
    other = Judge("fake judge", "other weights", AnswerLikelihoods(Weighs()))
    second = evaluated(tmp_path / "other", clip(), other, DrawsCaptions())
    assert first["prompts"]["drawing_scores"] != second["prompts"]["drawing_scores"]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_changes_nothing(tmp_path: Path, batch_size: int) -> None:
    whole = evaluated(tmp_path / "whole", clip(), judge(), DrawsCaptions())
    assert evaluated(tmp_path / "other", clip(), judge(), DrawsCaptions(), batch_size=batch_size)["cells"] == whole["cells"]


def test_scenes_are_asked_with_the_prompts_that_the_recogniser_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_reader", lambda source: lambda images: [([], {}) for _ in images])
    source, weighs, model = in_memory("fakes", SPLITS), Weighs(), Draws()
    source.judge = Judge("fake judge", "w", AnswerLikelihoods(weighs))
    options: dict[str, Any] = {"about": fakes.ABOUT, "weights": "w", "console": Console(quiet=True)}
    evaluate(model, Draws(), source, tmp_path, tasks=["drawing", "drawing_scores"], **options)
    prompts = [*drawing.seen_prompts(), *drawing.held_out_prompts()]
    assert [model.drawn.count(prompt) for prompt in prompts] == [1] * len(prompts)  # once for both tasks
    assert f'does this figure show "{drawing.seen_prompts()[0]}"?' in weighs.asked


def test_who_judges_must_weigh_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded(torch.nn.Linear, Weighs):
        pass

    monkeypatch.setattr(models, "load", lambda spec, device: Loaded(2, 2) if "good" in spec else torch.nn.Linear(2, 2))
    assert named_judge(str(tmp_path / "good-s0")).name == "good-s0"
    with pytest.raises(EvalError, match=r"--judge .*bad: Linear cannot compute the likelihood of an answer.*answer_likelihood"):
        named_judge(str(tmp_path / "bad"))


def test_every_seed_has_one_judge(tmp_path: Path) -> None:
    assert seed_zero(tmp_path / "cm3leon-tiny-s2") is None
    (tmp_path / "cm3leon-tiny-s0").mkdir()
    (tmp_path / "cm3leon-tiny-s0" / "model.safetensors").touch()
    assert seed_zero(tmp_path / "cm3leon-tiny-s2") == seed_zero(tmp_path / "cm3leon-tiny-s0") == tmp_path / "cm3leon-tiny-s0"
