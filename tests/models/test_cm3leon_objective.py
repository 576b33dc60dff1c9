"""CM3leon's causally masked objective."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.sample import Object
from models.cm3leon.objective import Weights
from models.cm3leon.sequence import Kind
from tests.models.cm3leon_kit import FRAMED, build, coloured, ids_of
from tests.models.kit import assert_close


@FRAMED
def test_loss_is_next_token_prediction_over_the_whole_sequence(framed: bool) -> None:
    """One token at a time, without batch, padding or cache."""
    model = build(framed=framed)
    samples = coloured(4)
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
    model = build()
    thing = Object("square", (0, 0, 6, 4))  # one cell of 4 x 4 whole, half of the next
    batch = model.collate([replace(coloured(1)[0], objects=(thing,))])
    assert batch["covered"][0].tolist() == [1.0, 0.5, *[0.0] * 14]


def test_terms_and_the_z_loss() -> None:
    model = build()
    batch = model.collate(coloured(4), np.random.default_rng(1))
    plain = model(batch)
    assert plain.terms.keys() == {"text", "image", "written", "drawn"}
    assert plain.terms["image"].item() == pytest.approx(plain.chance["image"], rel=0.3)  # nothing is learned yet
    model.config = replace(model.config, z_loss=0.1)
    stabilised = model(batch)
    logits = model.decoder.logits(model.decoder(ids_of(model, batch)[:, :-1], batch["places"][:, :-1] + 2 * model.frame.length))
    expected = 0.1 * logits.logsumexp(dim=-1)[batch["kinds"][:, 1:] != Kind.NOTHING].square().mean()
    assert stabilised.terms["z"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert stabilised.total.item() == pytest.approx(plain.total.item() + expected.item(), rel=1e-4)


def test_the_loss_does_not_depend_on_how_many_logits_are_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    model.config = replace(model.config, z_loss=0.1)
    batch = model.collate(coloured(4), np.random.default_rng(1))
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
    model = build()
    batch = model.collate(coloured(6), np.random.default_rng(1))
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
