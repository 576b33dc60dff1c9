"""Measure zero-shot classification with other prompts than those of the harness, for claims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import models
from data.sample import Sample
from eval.adapters.scorers import Subject
from eval.harness.source import from_shards
from eval.tasks.zeroshot import SCENE_AXES, Target, ZeroShot, scene_attributes
from models.shared.device import resolve_device
from recipes.claims.claim import ClaimError, Measured
from recipes.train.recipe import AnyRecipe


def zero_shot(target: str, templates: Sequence[str], split: str = "test") -> Measured:
    """Zero-shot accuracy for one attribute of single objects in the embedded data set, with prompts such as "a {colour} {shape}".

    Other attributes in the prompts are marginalised, as in the harness; attributes that the prompts do not mention are not.
    """

    def measure(folder: Path, recipe: AnyRecipe) -> dict[str, float]:
        model = models.load(folder, str(resolve_device(recipe.device)))
        return recognised(model, from_shards(recipe.data).samples(split), target, templates)

    return Measured(f"zero-shot {target}, {split}, prompts {'; '.join(templates)}", measure)


def recognised(model: Any, samples: Sequence[Sample], target: str, templates: Sequence[str]) -> dict[str, float]:
    """Key -> 1 or 0 for each single-object sample: whether `target` ("shape", "colour+shape") is classified correctly."""
    scorer = Subject(model).embeddings
    if scorer is None:
        raise ClaimError(
            f"zero-shot classification with other prompts needs encode_image and encode_text; {type(model).__name__} lacks one of them"
        )
    axes = {name: values for name, values in SCENE_AXES.items() if f"{{{name}}}" in templates[0]}
    single = [sample for sample in samples if scene_attributes(sample)]
    wanted = Target(target, tuple(target.split("+")))
    task = ZeroShot("", single, [scene_attributes(sample) for sample in single], axes, templates, [wanted])
    answers = task.ask(scorer, [sample.image for sample in single], range(len(single)))
    return {sample.key: float(record[target]) for sample, (record,) in zip(single, answers, strict=True)}
