"""Numbers of finished MiniGPT-4 runs for its claims: whether replies are well formed, and of the form that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
from eval.source import from_shards
from models.minigpt4.instructions import Form, Request, has_form, repeats, requests
from models.minigpt4.model import Reply
from recipes.claim import ClaimError, Measured
from recipes.place import Place
from recipes.recipe import AnyRecipe

BATCH = 64
PICTURES = 500
ASKED: tuple[Form, ...] = ("description", "list", "number", "word")  # forms that a request asks for


def in_the_form_asked_for(*forms: Form) -> Measured:
    """Share of replies that end by themselves, repeat nothing and have the form that their request asks for; of these forms only,
    all of them unless given."""
    kinds = f" ({', '.join(forms)})" if forms else ""
    return Measured(f"replies in the form asked for, test{kinds}", _share(forms or ASKED, well_formed))


def well_formed(request: Request, reply: Reply) -> bool:
    """True or not, it is a reply to such a request."""
    return reply.ended and not repeats(reply.text) and has_form(reply.text, request.form)


def _share(forms: tuple[Form, ...], holds: Callable[[Request, Reply], bool]) -> Callable[[Path, AnyRecipe], dict[str, float]]:
    def measure(folder: Path, recipe: AnyRecipe) -> dict[str, float]:
        model: Any = models.load(folder, str(Place.find(recipe.device).device))
        found: dict[str, float] = {}
        asked = []
        for number, sample in enumerate(from_shards(recipe.data).samples("test")[:PICTURES]):
            possible = [request for request in requests(sample) if request.form == forms[number % len(forms)]]
            if possible:  # each picture is asked once: forms in turn, and of a form its requests
                asked.append((sample, possible[number // len(forms) % len(possible)]))
        if not asked:
            raise ClaimError(f"{recipe.data}: nothing of the test split can be asked for {', '.join(forms)}")
        for start in range(0, len(asked), BATCH):
            batch = asked[start : start + BATCH]
            replies = model.reply([sample.image for sample, _ in batch], [request.text for _, request in batch])
            for (sample, request), reply in zip(batch, replies, strict=True):
                found[sample.key] = float(holds(request, reply))
        return found

    return measure
