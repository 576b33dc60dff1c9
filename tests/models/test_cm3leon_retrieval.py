"""What CM3leon retrieves, and what it is built from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from models.cm3leon import CM3leon
from models.cm3leon.retrieval import Memory
from models.cm3leon.sequence import Kind
from models.shared import device
from models.vq import VQ
from recipes.plan.stand_ins import to_fake
from tests.models.cm3leon_kit import CONFIG, FRAMED, TOKENIZER, build, coloured, to_adopt


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
    model = build(framed=framed, documents=2)
    model.remember([coloured(8, seed=3), coloured(8, seed=4)])
    assert int(model.memory.filled) == 16
    batch = model.collate(coloured(3), np.random.default_rng(1))
    alone_ = model.encode(batch)
    batch["documents"] = torch.zeros(3, 2)
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


@FRAMED
def test_retrieval_does_not_make_the_host_wait_and_finds_the_same(framed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(framed=framed, documents=2)
    model.remember([coloured(8, seed=3)])  # its memory is not full
    batch = model.collate(coloured(3), np.random.default_rng(1)) | {"documents": torch.zeros(3, 2)}
    found = []
    for knows in (True, False):
        monkeypatch.setattr(device, "host_knows", lambda x, knows=knows: knows)
        torch.manual_seed(0)
        found.append(model.encode(batch))
    for name, value in found[0].items():
        assert torch.allclose(found[1][name], value, rtol=1e-4), name
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    to_fake(model, fakes, "cuda")
    with fakes:
        rows = {name: torch.empty(value.shape, dtype=value.dtype, device="cuda") for name, value in batch.items()}
        assert all(value.shape == (3,) for value in model.encode(rows).values())


def test_query_dropout_leaves_tokens_out_of_the_query_alone() -> None:
    model = build()
    samples = coloured(40)
    batch = model.collate(samples, np.random.default_rng(0))
    kept = (batch["query"] >= 0).sum() / sum(len(model.collate.text(sample.captions[0])) for sample in samples)
    assert 0.7 < kept < 0.9
    assert ((batch["kinds"] == Kind.PROMPT) | (batch["kinds"] == Kind.WRITTEN)).sum() > (batch["query"] >= 0).sum()


def test_what_is_adopted_is_part_of_the_model_and_frozen() -> None:
    model = CM3leon(CONFIG, TOKENIZER)
    modules = to_adopt()
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
    model = build()
    rows = model.decoder.tokens.weight[model.vocabulary.image].detach()
    codes = model.image_tokenizer.quantiser.lookup(torch.arange(model.vocabulary.images)).float()
    pairs = torch.triu_indices(36, 36, 1)
    distances = torch.stack([torch.cdist(each, each)[pairs[0], pairs[1]] for each in (codes, rows)])
    assert torch.corrcoef(distances)[0, 1] > 0.5


def test_what_does_not_fit_into_the_positions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"raise decoder\.positions"):
        CM3leon(replace(CONFIG, decoder=replace(CONFIG.decoder, positions=100)), TOKENIZER)
