"""Decoding: against transformers' `generate` on the same weights, against exhaustive search, and on a model known by hand."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from models.shared.backbones import cache_name
from models.shared.generate import GREEDY, Decoding, generate, not_text
from models.shared.transformer import Block, KeyValueCache, TransformerConfig, attend
from tests.models.kit import assert_close, randomise

PAD, START, END, WORDS = 0, 1, 2, 30


class Bigram:
    """The next token depends on the last one alone: row `t` of `table` are the log-probabilities after token t."""

    def __init__(self, table: Tensor, rows: int = 1) -> None:
        self.table, self.rows, self.steps = table, rows, 0
        self.first = table[START].expand(rows, -1)

    def step(self, tokens: Tensor) -> Tensor:
        assert len(tokens) == self.rows, "tokens for rows that were dropped, or none for rows that were kept"
        self.steps += 1
        return self.table[tokens]

    def select(self, rows: Tensor) -> None:
        self.rows = len(rows)


class GPT2:
    """transformers' model and cache behind the protocol."""

    def __init__(self, model: Any, prompt: Tensor) -> None:
        self.model, self.cache = model, transformers.DynamicCache(config=model.config)
        with torch.no_grad():
            self.first = self._read(prompt)

    def step(self, tokens: Tensor) -> Tensor:
        return self._read(tokens[:, None])

    def select(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)

    def _read(self, ids: Tensor) -> Tensor:
        return self.model(ids, use_cache=True, **{cache_name(self.model): self.cache}).logits[:, -1]


@pytest.fixture(scope="module")
def gpt2() -> Any:
    """Random weights under which texts end after anything from no token to as many as there may be."""
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=START, eos_token_id=END, pad_token_id=PAD
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    randomise(model, 1)
    model.lm_head = torch.nn.Linear(32, WORDS, bias=False)  # its own: tied to the embedding, it would repeat one token for ever
    torch.nn.init.normal_(model.lm_head.weight, std=0.3, generator=torch.Generator().manual_seed(2))
    return model


def test_greedy_equals_transformers(gpt2: Any) -> None:
    prompt = _prompts(12)
    lengths = set()
    for limit in (1, 3, 12, 25):
        mine = _generate(gpt2, prompt, limit, GREEDY)
        assert mine == _transformers(gpt2, prompt, limit, num_beams=1)
        lengths |= {len(ids) for ids in mine}
    assert {0, 25} <= lengths
    assert len(lengths) > 4  # rows that end at different times


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("beams", [2, 5])
def test_beam_search_equals_transformers(gpt2: Any, beams: int, length_penalty: float) -> None:
    prompt = _prompts(6)
    for limit in (1, 4, 14):
        mine = _generate(gpt2, prompt, limit, Decoding(beams=beams, length_penalty=length_penalty))
        assert mine == _transformers(gpt2, prompt, limit, num_beams=beams, length_penalty=length_penalty, early_stopping="never")


def test_wide_beams_find_the_likeliest_of_all_texts() -> None:
    table = torch.randn(6, 6, generator=torch.Generator().manual_seed(4)).log_softmax(dim=-1)
    limit, words = 3, [3, 4, 5]
    legal = table.index_fill(1, torch.tensor([PAD, START]), float("-inf")).log_softmax(dim=-1)
    texts = [text for length in range(limit) for text in itertools.product(words, repeat=length)]
    whole = {(*text, END): _log_p(legal, (*text, END)) for text in texts}
    cut = {text: _log_p(legal, text) for text in itertools.product(words, repeat=limit)}
    best = max(whole | cut, key=lambda text: (whole | cut)[text])
    decoder = Bigram(table)
    (found,) = generate(
        decoder, decoder.first, end=END, limit=limit, never=[PAD, START], how=Decoding(beams=len(texts) * 6, length_penalty=0)
    )
    assert found == [token for token in best if token != END]


def test_a_finished_row_is_dropped_and_nothing_is_asked_once_all_are() -> None:
    table = torch.full((6, 6), -10.0)
    for last, following in ((START, 3), (3, 4), (4, END), (5, 5)):
        table[last, following] = 0.0
    decoder = Bigram(table, rows=3)
    first = decoder.first.clone()
    first[1, END] = 1.0
    assert generate(decoder, first, end=END, limit=10) == [[3, 4], [], [3, 4]]
    assert decoder.steps == 2
    endless = Bigram(table, rows=1)
    assert generate(endless, table[[5]], end=END, limit=7) == [[5] * 7]
    assert endless.steps == 6
    assert generate(Bigram(table), table[[5]], end=END, limit=0) == [[]]
    assert generate(Bigram(table, rows=0), table[:0], end=END, limit=7) == []


@pytest.mark.parametrize("how", [GREEDY, Decoding(beams=3), Decoding(temperature=1.0), Decoding(temperature=1.0, top_k=3, top_p=0.5)])
def test_what_is_never_to_be_written_is_not(how: Decoding) -> None:
    table = torch.zeros(6, 6)
    table[:, [PAD, START]] = 20.0
    decoder = Bigram(table, rows=50)
    written = generate(decoder, decoder.first, end=END, limit=20, never=[PAD, START], how=how)
    assert {token for ids in written for token in ids} <= {3, 4, 5}


def test_samples_have_the_models_distribution() -> None:
    p = torch.tensor([0.0, 0.0, 0.1, 0.2, 0.3, 0.4])
    rows = 20_000
    _assert_frequencies(Decoding(temperature=1.0), p.tolist(), rows)
    squared = p**2 / (p**2).sum()
    _assert_frequencies(Decoding(temperature=0.5, seed=1), squared.tolist(), rows)
    _assert_frequencies(Decoding(temperature=1.0, top_k=2), [0, 0, 0, 0, 3 / 7, 4 / 7], rows)
    _assert_frequencies(Decoding(temperature=1.0, top_p=0.75), [0, 0, 0, 2 / 9, 3 / 9, 4 / 9], rows)  # .4 and .3 do not yet hold .75
    _assert_frequencies(Decoding(temperature=1.0, top_p=0.65), [0, 0, 0, 0, 3 / 7, 4 / 7], rows)
    _assert_frequencies(Decoding(temperature=1.0, top_k=3, top_p=0.7), [0, 0, 0, 0, 3 / 7, 4 / 7], rows)  # of .9 left, .7 is .63


def test_top_k_1_and_the_smallest_nucleus_are_greedy(gpt2: Any) -> None:
    prompt = _prompts(5)
    greedy = _generate(gpt2, prompt, 12, GREEDY)
    assert _generate(gpt2, prompt, 12, Decoding(temperature=1.0, top_k=1)) == greedy
    assert _generate(gpt2, prompt, 12, Decoding(temperature=1.0, top_p=1e-6)) == greedy


def test_a_seed_repeats_and_another_row_finishing_changes_nothing(gpt2: Any) -> None:
    prompt = _prompts(8)
    how = Decoding(temperature=1.0, seed=3)
    first = _generate(gpt2, prompt, 20, how)
    assert first == _generate(gpt2, prompt, 20, how)
    assert first != _generate(gpt2, prompt, 20, Decoding(temperature=1.0, seed=4))
    changed = prompt.clone()
    changed[:4] = prompt[4:]
    again = _generate(gpt2, changed, 20, how)
    assert again[4:] == first[4:]
    assert again[:4] != first[:4]


def test_bad_requests_are_refused() -> None:
    decoder = Bigram(torch.zeros(6, 6))
    with pytest.raises(ValueError, match="no text could end"):
        generate(decoder, decoder.first, end=END, limit=3, never=[END])
    with pytest.raises(ValueError, match="NaN"):
        generate(decoder, torch.full((1, 6), math.nan), end=END, limit=3)
    for wrong in ({"beams": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}):
        with pytest.raises(ValueError, match="expected beams >= 1"):
            Decoding(**wrong)
    with pytest.raises(ValueError, match="does not sample"):
        Decoding(beams=2, temperature=1.0)
    with pytest.raises(ValueError, match="set a temperature"):
        Decoding(top_p=0.9)


def test_padding_that_is_also_the_end_may_be_written() -> None:
    assert not_text(SimpleNamespace(pad=7, start=7, end=7)) == []  # type: ignore[arg-type]
    assert not_text(SimpleNamespace(pad=0, start=None, end=2)) == [0]  # type: ignore[arg-type]
    assert not_text(SimpleNamespace(pad=0, start=1, end=2)) == [0, 1]  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ caches


@pytest.mark.parametrize("pieces", [(1,) * 7, (3, 1, 3), (7,), (2, 5)], ids=str)
def test_a_cached_block_equals_the_whole(pieces: tuple[int, ...]) -> None:
    block, x = _block(), torch.randn(4, 7, 16, generator=torch.Generator().manual_seed(1))
    cache = KeyValueCache(7)
    parts = [block(part, causal=True, cache=cache) for part in x.split(pieces, dim=1)]
    assert_close(torch.cat(parts, dim=1), block(x, causal=True), "states")


def test_rows_of_a_cache_are_chosen_and_repeated() -> None:
    block, x = _block(), torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(1))
    cache, rows = KeyValueCache(5), torch.tensor([2, 0, 2])
    block(x[:, :3], causal=True, cache=cache)
    cache.select(rows)
    assert_close(block(x[rows, 3:], causal=True, cache=cache), block(x[rows], causal=True)[:, 3:], "states")
    with pytest.raises(ValueError, match="6 positions do not fit into a cache for 5"):
        block(x[rows, :1], causal=True, cache=cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [32, 90])  # in bf16 the second takes more room after 32 positions
def test_one_query_sees_all_that_a_cache_holds_and_is_not_barred_from(dtype: torch.dtype, length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    last = min(length, 40)
    kv = torch.randn(2, 3, 2, last, 8, generator=generator).to(dtype)
    cache, rows, bars = KeyValueCache(length), torch.tensor([2, 0]), [torch.zeros(2, 1, 1, last, dtype=dtype), None]
    bars[0][1, :, :, :7] = float("-inf")  # type: ignore[index]
    cache.append(kv[:, :, :, :28])
    cache.select(rows)
    held = kv[:, rows]
    for place in range(28, last):
        cache.append(held[:, :, :, place : place + 1])
        q = torch.randn(2, 2, 1, 8, generator=generator).to(dtype)
        for bar in bars:
            bias = None if bar is None else bar[..., : place + 1]
            found = cache.attend(q, bias=bias).float()
            k, v = held[:, :, :, : place + 1].float()
            logits = torch.einsum("bhtd,bhsd->bhts", q.float(), k) / 8**0.5 + (0 if bias is None else bias.float())
            expected = torch.einsum("bhts,bhsd->bhtd", logits.softmax(dim=-1), v)
            torch.testing.assert_close(found, expected, atol=1e-6 if dtype == torch.float32 else 2e-2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("new", "seen"), [(1, 6), (4, 6), (6, 6)])
def test_causal_queries_are_the_last_positions(dtype: torch.dtype, new: int, seen: int) -> None:
    q, k, v = (torch.randn(2, 3, length, 8, generator=torch.Generator().manual_seed(0)).to(dtype) for length in (new, seen, seen))
    found = attend(q, k, v, causal=True).float()
    for place in range(new):
        visible = seen - new + place + 1
        alone = attend(q[:, :, place : place + 1], k[:, :, :visible], v[:, :, :visible]).float()
        torch.testing.assert_close(found[:, :, place : place + 1], alone, atol=1e-6 if dtype == torch.float32 else 2e-2, rtol=0)


def _block() -> Block:
    block = Block(TransformerConfig(width=16, depth=1, heads=2))
    randomise(block, 0)
    return block.eval()


def _prompts(count: int) -> Tensor:
    return torch.randint(3, WORDS, (count, 3), generator=torch.Generator().manual_seed(5))


def _generate(model: Any, prompt: Tensor, limit: int, how: Decoding) -> list[list[int]]:
    decoder = GPT2(model, prompt)
    return generate(decoder, decoder.first, end=END, limit=limit, never=[PAD, START], how=how)


def _transformers(model: Any, prompt: Tensor, limit: int, **options: Any) -> list[list[int]]:
    """`renormalize_logits`: so that what may not be written has no share of the probability, as in ours."""
    ids = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=limit,
        do_sample=False,
        suppress_tokens=[PAD, START],
        renormalize_logits=True,
        **options,
    )
    return [row[: row.index(END)] if END in row else row for row in ids[:, prompt.shape[1] :].tolist()]


def _log_p(table: Tensor, text: tuple[int, ...]) -> float:
    return sum(table[last, token].item() for last, token in itertools.pairwise((START, *text)))


def _assert_frequencies(how: Decoding, expected: list[float], rows: int) -> None:
    p = torch.tensor([0.0, 0.0, 0.1, 0.2, 0.3, 0.4])
    decoder = Bigram(p.log().expand(6, -1), rows=rows)
    written = generate(decoder, decoder.first, end=END, limit=1, how=how)
    counts = torch.bincount(torch.tensor([ids[0] if ids else END for ids in written]), minlength=6) / rows
    for token, (found, share) in enumerate(zip(counts.tolist(), expected, strict=True)):
        assert abs(found - share) <= 4 * math.sqrt(share * (1 - share) / rows), f"token {token}: {found} instead of {share}"
