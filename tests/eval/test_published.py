"""Published weights are evaluated as they are, by the code that evaluates a run: up to the wire, with a checkpoint on disk."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import transformers
from PIL import Image

import eval.run
import models
from data.sample import Sample
from data.shards import write_index, write_shard
from eval import EvalError
from eval.report.report import build
from eval.report.results import read_runs
from eval.run import evaluate_run, stored
from tests.models.kit import randomise


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder as the Hugging Face hub has them, with random weights."""
    vision = {"image_size": 32, "patch_size": 16, "num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4}
    text = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2}
    theirs = transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24))
    randomise(theirs, 0)
    folder = tmp_path_factory.mktemp("hub")
    theirs.save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return f"hf:{folder}"


def pictures(count: int) -> Iterator[tuple[Sample, str, bytes]]:
    for index in range(count):
        image = np.random.default_rng(index).integers(0, 255, (32, 32, 3)).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        yield Sample(key=f"{index:05d}", image=image, label=("cat", "dog")[index % 2]), "png", buffer.getvalue()


def test_published_weights_become_a_run_that_is_reported(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write_shard(tmp_path / "pets/test/00000.tar", pictures(20))
    write_index(tmp_path / "pets/test", name="pets", split="test", shards=[shard])
    folder = stored(spec, tmp_path / "runs")
    result = evaluate_run(folder, data=str(tmp_path / "pets"), device="cpu", tasks=["zeroshot"])
    assert (result["model"], result["preset"], result["published"], result["trained_on"]) == ("clip", "published", spec, spec)
    by_variant = {cell["variant"]: cell["value"] for cell in result["cells"] if cell["metric"] == "top-1"}
    assert by_variant["chance"] == pytest.approx(0.5)
    assert {"model", "untrained", "shuffled images"} <= set(by_variant)

    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("fetched twice"))
    assert stored(spec, tmp_path / "runs") == folder
    report = build(read_runs(tmp_path / "runs"), ())
    (row,) = report.datasets[0].rows
    assert row.cost("total_parameters") > 1000
    assert row.cost("train_flops") is None
    assert report.commands == [f"make eval-clip WEIGHTS={spec} TEST={tmp_path / 'pets'}", "make compare"]


def test_their_names_make_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open_clip-ViT-B-32-laion2b_s34b_b79k", "hf-google-siglip-base-patch16-224"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text(json.dumps({}))
    assert stored("open_clip:ViT-B-32/laion2b_s34b_b79k", tmp_path).name == "open_clip-ViT-B-32-laion2b_s34b_b79k"
    assert stored("hf:google/siglip-base-patch16-224", tmp_path).name == "hf-google-siglip-base-patch16-224"


def test_without_a_data_set_there_is_nothing_to_evaluate(spec: str, tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="--data"):
        evaluate_run(stored(spec, tmp_path))


def test_unreachable_weights_are_an_error_message(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="expected open_clip:MODEL/TAG"):
        eval.run.main("open_clip:nothing")
