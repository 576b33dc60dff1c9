"""Provenance of results: date, commit and library versions, which every result file records."""

from __future__ import annotations

import hashlib
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIBRARIES = {"torch": "torch", "timm": "timm", "transformers": "transformers", "open_clip": "open_clip_torch"}  # name -> distribution


def provenance() -> dict[str, Any]:
    """`date` (UTC), `commit` as `commit` gives it, and `versions` of the libraries that computed."""
    return {"date": datetime.now(UTC).date().isoformat(), "commit": commit(), "versions": versions()}


@cache  # cached: a process runs the code it started with, even if files are edited or committed meanwhile
def commit() -> str | None:
    """The commit of this code as 40 hexadecimal digits, followed by "-dirty" if tracked files differ from it. None outside a git
    checkout or without git."""
    if not (ROOT / ".git").exists():  # installed without its history, perhaps inside another repository
        return None
    try:
        asked = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def weights_of(folder: Path) -> str:
    """SHA-256 of the weights and the configuration in a run folder: by it an evaluation says which model it is of. Raises OSError."""
    digest = hashlib.sha256()
    for name in ("model.safetensors", "model.json"):
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Library -> version, for installed libraries."""
    found = {}
    for name, distribution in LIBRARIES.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            continue
    return found
