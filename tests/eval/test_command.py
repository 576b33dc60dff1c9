"""The command on a run folder and shards on disk, as a user would run it."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
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

    for split, count in {"train": 120, "val": 40, "test": 60, "heldout": 40, "style": 40}.items():
        shard = write_shard(root / "scenes" / split / "00000.tar", encoded(split, count))
        write_index(root / "scenes" / split, name="scenes-test", split=split, shards=[shard])
    torch.manual_seed(1)
    tokenizer = BPETokenizer.train(captions, 400)
    models.save(CLIP(replace(CLIPConfig.tiny(), vocab_size=tokenizer.vocab_size), tokenizer), root / "runs" / "clip-tiny-s3")
    recipe = {"name": "clip", "data": str(root / "scenes"), "seed": 3}
    (root / "runs" / "clip-tiny-s3" / "recipe.json").write_text(json.dumps(recipe))
    return root


def test_the_command_writes_what_the_report_reads(folder: Path) -> None:
    run = folder / "runs" / "clip-tiny-s3"
    command = [sys.executable, "-m", "eval.run", str(run), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "zeroshot" in done.stdout
    assert len(done.stdout.splitlines()) <= 40
    assert all(len(line) <= 100 for line in done.stdout.splitlines() if str(folder) not in line)  # a path is as long as it is
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


def test_interrupted_with_a_real_model_it_ends_with_the_same_records(folder: Path) -> None:
    run = folder / "runs" / "clip-tiny-s3"
    shutil.rmtree(run / "eval", ignore_errors=True)  # what another batch size left differs in the last bits
    whole = evaluate_run(run, device="cpu", batch_size=16)
    files = {path: path.read_bytes() for path in (run / "eval" / "scenes-test").glob("*.jsonl")}
    for number, (path, content) in enumerate(sorted(files.items())):
        path.write_bytes(content[: len(content) * (number % 5) // 4])  # some gone, some torn, some whole
    resumed = evaluate_run(run, device="cpu", batch_size=16)
    assert resumed["cells"] == whole["cells"]
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
    done = subprocess.run([sys.executable, "-m", "eval.run", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("eval: ")
    assert "Traceback" not in done.stderr
