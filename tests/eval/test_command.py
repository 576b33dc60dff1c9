"""The command on a run folder and shards on disk, as a user would run it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import models
from data.sample import Sample
from data.scenes.build import make_sample
from data.scenes.world import PRESETS
from data.shards import write_index, write_shard
from eval import EvalError
from eval.report.results import read_results, read_runs, refuse_unlike
from eval.run import evaluate_run
from models.clip import CLIP, CLIPConfig
from models.shared.text import BPETokenizer
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from tests.processes import command

VISION = VisionConfig(width=32, depth=1, heads=2, activation="relu", image_size=64, patch_size=16, stem="conv", pool="avg")
TEXT = TransformerConfig(width=32, depth=1, heads=2, activation="relu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small scenes set and the run folder of a CLIP that never learned."""
    root = tmp_path_factory.mktemp("command")
    captions: list[str] = []

    def encoded(split: str, count: int) -> Iterator[tuple[Sample, str, bytes]]:
        for index in range(count):
            sample = make_sample(PRESETS["tiny"], split, index)
            captions.extend(sample.captions)
            buffer = io.BytesIO()
            Image.fromarray(sample.image).save(buffer, "PNG")
            yield sample, "png", buffer.getvalue()

    for split, count in {"train": 60, "val": 20, "test": 40, "heldout": 12, "style": 12}.items():
        shard = write_shard(root / "scenes" / split / "00000.tar", encoded(split, count))
        write_index(root / "scenes" / split, name="scenes-test", split=split, shards=[shard])
    torch.manual_seed(1)
    tokenizer = BPETokenizer.train(captions, 400)
    config = CLIPConfig(vision=VISION, text=TEXT, embed_dim=16, vocab_size=tokenizer.vocab_size)
    models.save(CLIP(config, tokenizer), root / "runs" / "clip-tiny-s3")
    recipe = {"name": "clip", "data": str(root / "scenes"), "seed": 3}
    (root / "runs" / "clip-tiny-s3" / "recipe.json").write_text(json.dumps(recipe))
    return root


def evaluated(folder: Path) -> str:
    """What the command prints."""
    done = command("eval.run", str(folder / "runs" / "clip-tiny-s3"), "--device", "cpu", "--batch-size", "16")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_writes_what_the_report_reads_and_interrupted_it_ends_with_the_same_records(folder: Path) -> None:
    printed = evaluated(folder)
    assert "zeroshot" in printed
    assert len(printed.splitlines()) <= 40
    assert all(len(line) <= 100 for line in printed.splitlines() if str(folder) not in line)  # a path is as long as it is
    results = read_results(read_runs(folder / "runs"))
    refuse_unlike(results)
    (result,) = results
    assert (result.model, result.paradigm, result.preset, result.seed) == ("clip", "contrastive", "tiny", 3)
    assert (result.dataset, result.trained_on) == ("scenes-test", "scenes-test")
    assert {cell.key.split for cell in result.cells} == {"test", "heldout", "style"}
    answered = {cell.key.task for cell in result.cells if cell.variant == "model" and cell.value is not None}
    assert {"zeroshot", "retrieval", "foils", "probe", "binding", "vqa", "pope"} <= answered
    assert not {"captioning", "drawing", "drawing_scores", "fewshot_vqa"} & answered
    assert result.inference_flops > 1e6
    assert result.showcase["items"]

    files = {path: path.read_bytes() for path in (folder / "runs" / "clip-tiny-s3" / "eval" / "scenes-test").glob("*.jsonl")}
    assert len(files) > 20
    for number, (path, content) in enumerate(sorted(files.items())):
        path.write_bytes(content[: len(content) * (number % 5) // 4])  # some gone, some torn, some whole
    evaluated(folder)
    assert read_results(read_runs(folder / "runs"))[0].cells == result.cells
    assert {path: path.read_bytes() for path in files} == files


def test_an_untrained_model_is_at_chance_and_the_oracle_is_not(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = evaluate_run(folder / "runs" / "clip-tiny-s3", device="cpu", tasks=["foils"], everything=True)["cells"]
    printed = capsys.readouterr().out
    assert "foils, test" in printed
    assert "swap_attribute_colour" in printed  # no headline: in the tables only
    values = {(cell["variant"], cell["split"], cell["metric"]): cell for cell in cells}
    assert abs(values["model", "test", "swap_relation"]["value"] - 0.5) < 0.25
    assert values["oracle", "test", "swap_relation"]["value"] == 1


def test_errors_name_the_file_and_what_to_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"model\.json is missing.*make train-clip"):
        evaluate_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="no data at"):
        evaluate_run(folder / "runs" / "clip-tiny-s3", data=str(tmp_path / "nothing"))
    done = command("eval.run", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("eval: ")
    assert "Traceback" not in done.stderr
