"""The authors' scores of published weights beside ours: matched by weights, data, metric and gallery, with the cause of a difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import eval.report.authors as authors
from eval.base import schemas
from eval.report.authors import FOLDER, comparisons, figures
from recipes.tools.collect import published_file

WEIGHTS = "open_clip:ViT-B-32/laion2b_s34b_b79k"


def cell(metric: str, value: float | None, **changes: Any) -> dict[str, Any]:
    found = {"task": "retrieval", "split": "test", "variant": "model", "metric": metric, "value": value, "n": 1000}
    around = {"low": value - 0.01, "high": value + 0.01} if value is not None else {"low": None, "high": None}
    return found | around | {"adapter": "embeddings", "note": ""} | changes


def result(*cells: dict[str, Any], dataset: str = "flickr30k", weights: str = WEIGHTS, limit: int | None = None) -> dict[str, Any]:
    return {"published": weights, "dataset": dataset, "limit": limit, "cells": list(cells)}


def row(found: list[authors.Comparison], metric: str, data: str) -> list[str]:
    (line,) = [each.row() for each in found if each.figure.metric == metric and each.figure.data[0] == data]
    return line


def test_ours_beside_theirs() -> None:
    found = comparisons(
        result(
            cell("i2t R@1 (500)", 0.9),
            cell("i2t R@1 (1000)", 0.845),
            cell("i2t R@1 (1000)", 0.1, variant="shuffled images"),
            cell("i2t R@1 (1000)", 0.2, split="style"),
            cell("t2i R@1 (1000)", 0.5),
            cell("i2t R@10 (1000)", 0.99),
        )
    )
    assert row(found, "i2t R@1", "flickr30k")[3:] == ["84.1", "84.5", "83.5-85.5", "no difference beyond chance"]
    assert row(found, "t2i R@1", "flickr30k")[3:6] == ["66.8", "50.0", "49.0-51.0"]
    assert row(found, "t2i R@1", "flickr30k")[6].startswith("unknown; their protocol: CLIP_benchmark")
    assert row(found, "i2t R@1", "coco")[3:] == ["56.3", "", "", "measured on coco: TEST=<its shards>"]


def test_causes_of_a_difference() -> None:
    found = comparisons(result(cell("i2t R@1 (500)", 0.95, n=500), limit=600))
    assert row(found, "i2t R@1", "flickr30k")[6] == "500 images instead of 1,000; only 600 samples (--limit)"
    siglip = "hf:google/siglip-base-patch16-224"
    found = comparisons(result(cell("i2t R@1 (1000)", 0.5), weights=siglip, dataset="Flickr-30k"))
    assert row(found, "i2t R@1", "flickr30k")[6] == "theirs squeezes a whole picture into a square, ours takes its central square"
    found = comparisons(result(cell("i2t R@1 (1000)", None, note="it has no embeddings"), dataset="flickr30k-mine"))
    assert row(found, "i2t R@1", "flickr30k")[6] == "it has no embeddings"
    found = comparisons(result(cell("i2t R@1 (5000)", 0.4), weights="hf:facebook/flava-full", dataset="coco"))
    assert row(found, "i2t R@1", "coco")[3] == "42.7 (unconfirmed)"


def test_weights_are_known_by_their_names() -> None:
    assert figures(WEIGHTS)
    assert figures("hf:/disk/models/facebook/flava-full")
    assert not figures("open_clip:ViT-B-32/laion2b_e16")
    assert not figures("hf:someone/not-facebook/flava")
    assert not figures("hf:someone/flava-full")  # another hub id
    for copy in ("/data/flava-full/", "./flava-full", "/cache/models--facebook--flava-full/snapshots/0123"):
        assert figures(f"hf:{copy}") == figures("hf:facebook/flava-full")
    assert figures("open_clip:hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K") == figures("open_clip:ViT-B-32/laion2b_s34b_b79k")
    assert not comparisons(result(weights=""))
    assert not comparisons({"published": "hf:unknown/model", "dataset": "coco", "cells": []})


def test_every_file_has_sources_and_shares() -> None:
    for path in FOLDER.glob("*.json"):
        content = json.loads(path.read_text())
        assert content["weights"], path
        for each in content["figures"]:
            assert each["source"], path
            assert each["protocol"], path
            assert 0 < each["value"] < 1, path


def test_a_broken_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.json").write_text(json.dumps({"weights": ["hf:a/b"], "figures": [{"task": "retrieval", "value": "0.5"}]}))
    monkeypatch.setattr(authors, "FOLDER", tmp_path)
    authors._known.cache_clear()
    try:
        with pytest.raises(ValueError, match="value"):
            figures("hf:a/b")
    finally:
        authors._known.cache_clear()


def test_they_are_collected(tmp_path: Path) -> None:
    from eval.report.results import Run

    folder = tmp_path / "open_clip-x"
    (folder / "eval" / "flickr30k").mkdir(parents=True)
    about = {"schema": schemas.EVALUATION, "date": "2026-01-02", "commit": "abc", "versions": {}, "hardware": "1 x CPU"}
    raw = about | result(cell("i2t R@1 (1000)", 0.845))
    (folder / "eval" / "flickr30k" / "eval.json").write_text(json.dumps(raw))
    (folder / "recipe.json").write_text(json.dumps({"name": "clip", "preset": "published", "published": WEIGHTS}))
    record = published_file(Run("open_clip-x", folder))
    assert record["weights"] == WEIGHTS
    assert record["evaluations"][0]["rows"] == [row(comparisons(raw), "i2t R@1", "flickr30k")]
    (folder / "eval" / "flickr30k" / "eval.json").write_text(json.dumps(raw | {"dataset": "scenes"}))
    assert published_file(Run("open_clip-x", folder)) == {}
