"""A model whose paper asks some tasks after an earlier stage of its training: the run folder keeps the model of that stage."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import models
from data.sample import Sample
from data.shards import write_index, write_shard
from eval.report.results import Result, read_results, read_runs
from eval.report.rows import to_rows
from eval.run import evaluate_run
from models.clip import CLIP, CLIPConfig
from models.shared.text import BPETokenizer


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two models of one training, on pictures that have captions and class labels."""
    words = ("red", "blue", "green")

    def samples() -> Iterator[tuple[Sample, str, bytes]]:
        for number in range(12):
            image = np.full((64, 64, 3), 20 * number, np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            word = words[number % 3]
            yield Sample(f"{number:03}", image, captions=(f"picture {number} is {word}",), label=word), "png", buffer.getvalue()

    shard = write_shard(tmp_path / "photos" / "test" / "00000.tar", samples())
    write_index(tmp_path / "photos" / "test", name="photos", split="test", shards=[shard])
    tokenizer = BPETokenizer.train([sample.captions[0] for sample, _, _ in samples()], 300)
    run = tmp_path / "runs" / "two-tiny-s0"
    recipe = {"page": "two", "name": "clip", "preset": "tiny", "seed": 0, "data": str(tmp_path / "photos")}
    for seed, folder, about in ((1, run, {}), (2, run / "stages" / "first", {"stage": "first"})):
        torch.manual_seed(seed)
        models.save(CLIP(replace(CLIPConfig.tiny(), vocab_size=tokenizer.vocab_size), tokenizer), folder)
        (folder / "recipe.json").write_text(json.dumps(recipe | about))
    return run


def asked(result: Result) -> set[str]:
    return {cell.key.task for cell in result.cells if cell.variant == "model" and cell.value is not None}


def test_each_task_is_asked_of_the_model_of_its_stage(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(CLIP, "asked_after", {"first": ("retrieval", "winoground"), "another": ("zeroshot",)})
    monkeypatch.setattr(CLIP, "notes", {"zeroshot": "three words only"})
    evaluate_run(run, device="cpu")
    finished, first = read_results(read_runs(run.parent))
    assert asked(first) == {"retrieval"}  # these data have nothing to ask winoground about
    assert "zeroshot" in asked(finished)  # no model is kept of the stage another
    assert "retrieval" not in asked(finished)
    reasons = {cell.note for cell in finished.cells if cell.key.task == "retrieval" and cell.variant == "model"}
    assert reasons == {"evaluated after stage first, as in the paper: see the row two after first"}
    assert finished.notes["zeroshot"] == "three words only"
    assert "after stage first" in finished.notes["retrieval"]
    assert [row.name for row in to_rows([finished, first])] == ["two", "two after first"]
    assert [first.run.name, first.run.home] == ["two-tiny-s0-first", run]
    assert [set(shown.showcase["adapters"]) for shown in (first, finished)] == [{"ranked", "look"}, {"look"}]
    pictured = [[item["key"] for item in shown.showcase["items"]] for shown in (first, finished)]
    assert pictured[0] == pictured[1]  # or they would not stand side by side
    assert "Not run: retrieval (evaluated after stage first" in capsys.readouterr().out


def test_a_task_that_is_named_is_asked_of_both(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CLIP, "asked_after", {"first": ("retrieval",)})
    evaluate_run(run, device="cpu", tasks=["retrieval"])
    finished, first = read_results(read_runs(run.parent))
    assert asked(first) == asked(finished) == {"retrieval"}


def test_a_run_without_stages_is_asked_everything(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CLIP, "asked_after", {"second": ("retrieval",)})
    evaluate_run(run, device="cpu", tasks=["retrieval"])
    (finished,) = read_results(read_runs(run.parent))
    assert asked(finished) == {"retrieval"}
