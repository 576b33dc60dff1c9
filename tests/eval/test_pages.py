"""The pages task: prompts as they are read, accuracy by place, and models whose answers are known by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.pages import SPLITS, page, page_sample, pairs_of
from data.scenes.world import PRESETS
from eval.harness.source import Source, in_memory
from eval.scenes.oracle import Oracle, has_truth
from eval.tasks.pages import Pages, Prior, plan
from tests.eval.fakes import run

TINY = PRESETS["tiny"]


@cache
def source() -> Source:
    splits = {split: [page(TINY, split, index) for index in range(40)] for split in SPLITS}
    test = [make_sample(TINY, "test", index) for index in range(40)]
    return in_memory("pages", {"train": [page_sample(TINY, "train", index) for index in range(300)], "test": test, **splits})


def task_of(split: str = "pages") -> Pages:
    return next(task for task in plan(source()) if task.split == split)


class Completer:
    adapter = "completion"

    def __init__(self, say: Any) -> None:
        self.say = say

    def completions(self, prompts: Sequence[Sequence[Any]]) -> list[str]:
        return [self.say(prompt) for prompt in prompts]


def records(task: Pages, say: Any, images: Sequence[np.ndarray] | None = None) -> list[dict[str, Any]]:
    shown = images or [sample.image for sample in task.samples]
    return [record for found in task.ask(Completer(say), shown, range(len(task.samples))) for record in found]


def mean(found: Sequence[dict[str, Any]], name: str) -> float:
    return float(np.mean([record[name] for record in found]))


def test_every_split_of_pages_has_its_task_and_other_data_have_none() -> None:
    assert [task.split for task in plan(source())] == list(SPLITS)
    assert plan(in_memory("scenes", {"test": [make_sample(TINY, "test", index) for index in range(5)]})) == []
    captioned = [Sample("0", page(TINY, "pages", 0).image, captions=("a",), page=(0, "a"))]  # a page without a rule
    assert plan(in_memory("web", {"test": captioned, "pages": captioned})) == []


def test_prompts_hold_the_pairs_before_and_nothing_of_the_text_that_is_asked_for() -> None:
    task, prompts = task_of(), []
    records(task, lambda prompt: prompts.append(list(prompt)) or "")
    sample, texts = task.samples[0], task.truth[0]
    first, second, *_, last, alone, exchanged = prompts[:7]
    assert [part if isinstance(part, str) else "picture" for part in second] == ["picture", f"\n{texts[0]}\n", "picture", "\n"]
    assert first[0] is sample.images[0]
    assert [part for part in last if not isinstance(part, str)] == list(sample.images)
    assert alone == [sample.images[4], "\n"]
    assert exchanged[8] is sample.images[4]
    assert all(part is not own for part, own in zip(exchanged[0:8:2], sample.images, strict=False))
    assert [part for part in exchanged if isinstance(part, str)] == [f"\n{text}\n" for text in texts[:4]] + ["\n"]


def test_the_oracle_learns_the_rule_from_the_pairs() -> None:
    assert has_truth([sample for split in SPLITS for sample in source().samples(split)])
    for task in plan(source()):
        oracle = Oracle(task.samples)
        found = records(task, lambda prompt, oracle=oracle: oracle.complete([prompt])[0])
        assert mean(found, "place 0") < 0.2
        assert mean(found, "place 4") > 0.8
        assert mean(found, "last picture only") < 0.2


def test_a_model_that_copies_the_text_before_gains_nothing_from_pictures() -> None:
    task = task_of("word_heldout")
    found = records(task, lambda prompt: prompt[-3].strip() if len(prompt) > 2 else "")
    assert mean(found, "place 0") == mean(found, "last picture only") == 0
    assert 0.25 < mean(found, "place 4") < 0.75
    assert mean(found, "place 4") == mean(found, "other pictures before")
    chance = [record for group in task.chance() for record in group]  # held-out words never follow one another in training
    for name in ("place 3", "place 4", "other pictures before"):
        assert mean(chance, name) == pytest.approx(mean(found, name))


def test_chance_is_what_follows_in_training_pages() -> None:
    prior = Prior.of_samples([s for s in source().samples("train") if s.page])
    assert prior.guess("never seen") == "never seen"
    assert prior.guess("yes") in ("yes", "no")
    followers = [(a, b) for s in source().samples("train") if s.page and isinstance(s.page[0], int) for a, b in _neighbours(s)]
    counts = {b: followers.count(("yes", b)) for a, b in followers if a == "yes"}
    assert counts[prior.guess("yes")] == max(counts.values())
    chance = [record for group in task_of().chance() for record in group]
    assert mean(chance, "place 0") < 0.3
    assert mean(chance, "place 4") < 0.6


def _neighbours(sample: Sample) -> list[tuple[str, str]]:
    texts = [text for _, text in pairs_of(sample)]
    return list(itertools.pairwise(texts))


def test_case_and_punctuation_do_not_count_but_other_words_do() -> None:
    task = task_of()
    truth = {id(sample.images[4]): texts[4] for sample, texts in zip(task.samples, task.truth, strict=True)}
    for form, right in ((lambda text: f" {text.upper()}.\nmore", 1.0), (lambda text: f"{text} thing", 0.0)):
        found = records(task, lambda prompt, form=form: form(truth.get(id(prompt[-2]), "?")))
        assert mean(found, "place 4") == mean(found, "last picture only") == right


def test_controls_exchange_or_blank_all_pictures_of_a_page() -> None:
    task = task_of()
    rows = range(len(task.samples))
    others = [task.samples[(row + 1) % len(task.samples)].image for row in rows]
    seen: list[Any] = []
    records(task, lambda prompt: seen.append(prompt) or "", others)
    assert [part for part in seen[4] if not isinstance(part, str)] == list(task.samples[1].images)
    blank = np.full_like(task.samples[0].image, 127)
    seen.clear()
    records(task, lambda prompt: seen.append(prompt) or "", [blank] * len(task.samples))
    assert all(part is blank for part in seen[4] if not isinstance(part, str))


def test_kinds_count_places_where_the_rule_can_be_known() -> None:
    task = task_of()
    found = records(task, lambda prompt: "yes")
    for record in found:
        kind = record["rule"].split()[0]
        assert record[f"{kind} texts"] == 3
        assert record[kind] == sum(text == "yes" for text in record["truth"][2:])


def test_it_runs_through_the_harness(tmp_path: Path) -> None:
    class Model:
        def complete(self, prompts: Sequence[Any]) -> list[str]:
            return ["yes"] * len(prompts)

    held = {split: source().samples(split) for split in source().streams}
    result = run(Model(), held, tmp_path, tasks=["pages"])
    cells = {(cell["split"], cell["variant"], cell["metric"]): cell["value"] for cell in result["cells"]}
    assert cells["pages", "oracle", "place 4"] > 0.85 > 0.3 > cells["pages", "oracle", "place 0"]
    assert {split for split, _, _ in cells} == set(SPLITS)
    for variant in ("model", "shuffled images", "blank images", "chance"):
        assert cells["pages", variant, "place 4"] is not None
