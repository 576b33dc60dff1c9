"""VQAScore (Lin et al. 2024, arXiv:2404.01291): the probability of "yes" to the question whether a picture shows a text.

Scores of different judges cannot be compared, so the name and the weights' hash are part of a task's settings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import models
from eval import EvalError
from eval.adapters.scorers import AnswerLikelihoods
from eval.base.capabilities import Images, Texts, WeighsAnswers
from eval.judges.clipscore import weights_hash

QUESTION = 'does this figure show "{}"?'  # the paper's, without its "Please answer yes or no."
NO_JUDGE = "there is no model to judge by: name a finished run that answers questions with EVAL_ARGS='--judge RUN'"


@dataclass(frozen=True, eq=False)
class Judge:
    """A model that says how likely an answer is."""

    name: str
    weights: str
    scorer: AnswerLikelihoods

    def vqa_score(self, images: Images, texts: Texts) -> np.ndarray:
        """float64 `[N]`: p("yes" | image, question about the text) (equation 1)."""
        questions = [QUESTION.format(text) for text in texts]
        return np.exp(self.scorer.likelihoods(images, questions, ["yes"] * len(texts)))


def named_judge(spec: str, device: str = "cpu", batch_size: int = 256) -> Judge:
    """The model of a run folder. Raises EvalError for a model that cannot weigh answers, FileNotFoundError where there is none."""
    model: Any = models.load(spec, device).requires_grad_(False)
    weights = weights_hash(model)
    if not isinstance(model, WeighsAnswers):
        raise EvalError(
            f"--judge {spec}: {type(model).__name__} cannot compute the likelihood of an answer; expected a model with answer_likelihood"
        )
    return Judge(Path(spec).resolve().name, weights, AnswerLikelihoods(model, batch_size))


def seed_zero(run: Path) -> Path | None:
    """The finished run of seed 0 of the same model, by its name: the judge of every seed's drawings, so that they have one."""
    path = run.resolve().with_name(re.sub(r"-s\d+$", "-s0", run.resolve().name))
    return path if (path / "model.safetensors").exists() else None
