"""Select the compute device and describe it for results."""

from __future__ import annotations

import os
import platform

import torch

from models.shared.distributed import ranks

KINDS = ("cpu", "cuda", "mps", "xpu")


def resolve_device(name: str) -> torch.device:
    """The device named cpu, cuda, cuda:1 or mps; `auto` is CUDA if available, otherwise the CPU.

    Raises ValueError for an unknown name, or if the device is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r}: expected auto, cpu, cuda, cuda:1 or mps") from error
    if device.type not in KINDS:
        raise ValueError(f"device {name!r}: expected auto, cpu, cuda, cuda:1 or mps")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name}: torch {torch.__version__} finds no CUDA device; use cpu or auto")
    try:
        torch.zeros(1, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # cuda:7 of two, mps on a machine that has none
        raise ValueError(f"device {name}: {str(error).split('. ')[0].splitlines()[0]}; use cpu or auto") from error
    return device


def host_knows(x: torch.Tensor) -> bool:
    """Whether the host can read the values of x without waiting for a device: on a CPU. There shapes may depend on them, so that nothing is
    computed for padding; elsewhere every position is computed, and padding is excluded from the sum."""
    return x.device.type == "cpu"


def may_decide_passes(x: torch.Tensor) -> bool:
    """Whether the values of x may decide how often a block runs: where the host knows them, in a single process. On many ranks they differ,
    and a sharded block is gathered each time that it runs, which all ranks must do together."""
    return host_knows(x) and ranks() == 1


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively; a CPU that does not emulates it, many times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capable = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capable.get("avx512_bf16") or capable.get("amx_bf16") or capable.get("bf16"))


def hardware(device: torch.device) -> str:
    """Description for reports: the GPU's name, or the processor and the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    kind = "CPU" if device.type == "cpu" else device.type
    return f"{platform.machine()} {kind}, {torch.get_num_threads()} of {os.cpu_count()} threads"
