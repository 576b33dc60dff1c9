"""Named tensors on disk: tied weights, and files that claim ties they do not have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data.files import FileError
from models.shared.tensors import read_about, read_tensors, write_tensors


def test_tied_weights_are_written_once_and_read_under_both_names(tmp_path: Path) -> None:
    weight, path = torch.randn(100, 50), tmp_path / "tied.safetensors"
    write_tensors(path, {"embed": weight, "head": weight, "equal": weight.clone(), "part": weight[:2]}, {"step": "7"})
    found = read_tensors(path)
    assert found.keys() == {"embed", "head", "equal", "part"}
    assert all(torch.equal(found[name], weight) for name in ("embed", "head", "equal"))
    assert torch.equal(found["part"], weight[:2])
    assert path.stat().st_size < 2 * weight.nbytes + 2_000
    assert read_about(path)["step"] == "7"


def test_what_only_shares_memory_or_is_empty_is_not_tied(tmp_path: Path) -> None:
    square, path = torch.randn(8, 8), tmp_path / "apart.safetensors"
    tensors = {"whole": square, "turned": square.T, "flat": square.flatten(), "none": torch.zeros(0), "nothing": torch.zeros(0)}
    write_tensors(path, tensors)
    assert read_about(path) == {}
    for name, tensor in read_tensors(path).items():
        assert torch.equal(tensor, tensors[name])


def test_files_that_hold_tied_weights_twice_are_read(tmp_path: Path) -> None:
    weight = torch.randn(4, 4)
    save_file({"embed": weight, "head": weight.clone()}, tmp_path / "old.safetensors")
    found = read_tensors(tmp_path / "old.safetensors")
    assert torch.equal(found["embed"], weight)
    assert torch.equal(found["head"], weight)


@pytest.mark.parametrize(
    "tied", [json.dumps({"head": "nowhere"}), json.dumps({"head": ["embed"]}), json.dumps(["head"]), "{", "3", "[" * 9999]
)
def test_ties_to_nothing_are_named(tied: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    save_file({"embed": torch.randn(2, 2)}, path, {"tied": tied})
    with pytest.raises(FileError, match=rf"^{path} cannot be read as safetensors .*\. Take it away$"):
        read_tensors(path, "Take it away")
