"""Which device a name means."""

from __future__ import annotations

import pytest
import torch

from models.shared.device import hardware, resolve_device


@pytest.mark.parametrize(("there", "found"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch, there: bool, found: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert resolve_device("auto") == torch.device(found)
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_cuda_that_is_not_there_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device {name}: .* finds no CUDA device; use cpu or auto"):
        resolve_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: None)
    assert resolve_device(name) == torch.device(name)


def test_an_unknown_device_is_an_error() -> None:
    with pytest.raises(ValueError, match="device 'gpu': expected auto, cpu"):
        resolve_device("gpu")


def test_the_cpu_is_named_with_its_threads() -> None:
    assert f"CPU, {torch.get_num_threads()} of " in hardware(torch.device("cpu"))
