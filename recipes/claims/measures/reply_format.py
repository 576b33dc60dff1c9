"""Measure whether a model replies in the requested format: `python -m recipes.claims.measures.reply_format .runs/minigpt4-tiny-s0`.

A reply is well formed if it has the requested format, ends with the end token and does not repeat a phrase. Each test image
gets one request per format, with greedy decoding and with sampling as in a chat (`make chat-<page>`). Results are written to form.json
in the run folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table

import models
from data.files import read_json, write_json
from eval.base.console import plain_console
from eval.harness.source import from_shards
from models.shared.chat import SAMPLED, Reply
from models.shared.device import resolve_device
from models.shared.generate import GREEDY, Decoding
from models.shared.instructions import Form, Request, has_form, repeats, requests
from recipes.claims.claim import ClaimError, Measured
from recipes.train.recipe import AnyRecipe

BATCH = 64
PICTURES = 500
ASKED: tuple[Form, ...] = ("description", "list", "number", "word")  # formats that can be requested
Quality = Literal["in the form asked for", "well formed"]
QUALITIES: tuple[Quality, ...] = ("in the form asked for", "well formed")


def in_the_form_asked_for(*forms: Form, how: Decoding = GREEDY, quality: Quality = "well formed") -> Measured:
    """Share of replies to requests for these formats (default: all) that meet `quality`; one request per image, cycling through the
    formats."""
    kinds = f" ({', '.join(forms)})" if forms else ""
    decoding = "greedy" if how == GREEDY else "sampled"

    def measure(folder: Path, recipe: AnyRecipe) -> dict[str, float]:
        model: Any = models.load(folder, str(resolve_device(recipe.device)))
        found = replies(model, recipe.data, forms or ASKED, how)
        return {key: float(holds(request, reply, quality)) for key, request, reply in found}

    return Measured(f"replies {quality}, {decoding}, test{kinds}", measure)


def holds(request: Request, reply: Reply, quality: Quality) -> bool:
    """Whether a reply has the requested format, regardless of its content."""
    whole = reply.ended and not repeats(reply.text)
    return has_form(reply.text, request.form) and (whole or quality == "in the form asked for")


def replies(model: Any, data: str, forms: tuple[Form, ...], how: Decoding) -> list[tuple[str, Request, Reply]]:
    """Key, request and reply for each image that supports a request."""
    asked = []
    for number, sample in enumerate(from_shards(data).samples("test")[:PICTURES]):
        possible = [request for request in requests(sample) if request.form == forms[number % len(forms)]]
        if possible:
            asked.append((sample, possible[number // len(forms) % len(possible)]))
    if not asked:
        raise ClaimError(f"{data}: no test image supports a request for {', '.join(forms)}")
    found = []
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        said = model.reply([sample.image for sample, _ in batch], [request.text for _, request in batch], how=how)
        found += [(sample.key, request, reply) for (sample, request), reply in zip(batch, said, strict=True)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure whether replies have the requested format", prog="recipes.claims.measures.reply_format"
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", default="")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    data = args.data or str(read_json(args.run / "recipe.json").get("data", ""))
    model: Any = models.load(args.run, str(resolve_device(args.device)))
    found: dict[str, dict[str, float]] = {}
    for decoding, how in (("greedy", GREEDY), ("sampled", SAMPLED)):
        said = {form: replies(model, data, (form,), how) for form in ASKED}
        for quality in QUALITIES:
            found[f"{quality}, {decoding}"] = {
                form: float(np.mean([holds(request, reply, quality) for _, request, reply in said[form]])) for form in ASKED
            }
    write_json(args.run / "form.json", {"data": data, "pictures": PICTURES, "shares": found})
    table = Table("replies", *ASKED, "mean", title=f"{args.run.name} on {data}")
    for way, shares in found.items():
        table.add_row(way, *(f"{share:.3f}" for share in shares.values()), f"{np.mean(list(shares.values())):.3f}")
    plain_console().print(table)


if __name__ == "__main__":
    main()
