"""CLIPScore (Hessel et al. 2021, arXiv:2104.08718): how well a text fits a picture, by a named CLIP.

Scores of different CLIPs cannot be compared, so the name and the weights' hash are part of a task's settings. Published
CLIPs get "A photo depicts " before every text, as in the paper (section 3); ours were not trained on these words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

import models
from eval import EvalError
from eval.adapters.scorers import EmbeddingScorer, Subject
from eval.base.capabilities import Images, Texts

WEIGHT = 2.5  # w of equation 1
PREFIX = "A photo depicts "
PUBLISHED = ("open_clip:", "hf:")
NO_CLIP = "there is no CLIP to judge by: train one on the same data (`make train-clip`), or name one with EVAL_ARGS='--clip RUN'"


@dataclass(frozen=True, eq=False)
class NamedCLIP:
    """A dual encoder that judges; it embeds each picture and each text once."""

    name: str
    weights: str
    prefix: str
    scorer: EmbeddingScorer

    def clip_score(self, images: Images, texts: Texts) -> np.ndarray:
        """`[N]`: 2.5 max(cos(image, text), 0) (equation 1)."""
        return WEIGHT * np.maximum(self.scorer.pairs(images, self.prompts(texts)), 0)

    def ref_clip_score(self, images: Images, texts: Texts, references: Sequence[Texts]) -> np.ndarray:
        """`[N]`: the harmonic mean of CLIPScore and the largest max(cos(text, reference), 0) (section 3, RefCLIPScore)."""
        fit, own = self.clip_score(images, texts), self.scorer.text_features(self.prompts(texts))
        near = np.array([(self.scorer.text_features(self.prompts(given)) @ row).max() for given, row in zip(references, own, strict=True)])
        near = np.maximum(near, 0)
        return np.divide(2 * fit * near, fit + near, out=np.zeros_like(fit), where=fit + near > 0)

    def prompts(self, texts: Texts) -> list[str]:
        """The texts as they are embedded."""
        return [self.prefix + text for text in texts]


def named_clip(spec: str, device: str = "cpu", batch_size: int = 256) -> NamedCLIP:
    """The CLIP of a run folder, or published weights (`open_clip:ViT-B-32/laion2b_s34b_b79k`). Raises EvalError for a model without
    embeddings, FileNotFoundError, ValueError or ConnectionError where there is none."""
    model = models.load(spec, device).requires_grad_(False)
    scorer = Subject(model, batch_size).embeddings
    if scorer is None:
        raise EvalError(f"--clip {spec}: {type(model).__name__} does not embed images and texts; expected a CLIP or another dual encoder")
    published = spec.startswith(PUBLISHED)
    return NamedCLIP(spec if published else Path(spec).resolve().name, weights_hash(model), PREFIX if published else "", scorer)


def clip_beside(run: Path) -> Path | None:
    """The finished CLIP of the same data and preset next to a run, by their names: for .runs/coca-tiny-s2 it is .runs/clip-tiny-s0. Where
    there is none, as with the preset real, the LiT."""
    tail = re.fullmatch(r"[a-z0-9]+?(-.+)-s\d+", run.resolve().name)
    paths = [run.resolve().with_name(f"{page}{tail[1]}-s0") for page in ("clip", "lit")] if tail else []
    return next((path for path in paths if (path / "model.safetensors").exists()), None)


def weights_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()
