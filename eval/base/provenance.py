"""Where a number comes from: what every file of results says of the code, the day and the libraries that made it."""

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


@cache  # a process computes with the code it began with, whatever is edited or committed while it runs
def commit() -> str | None:
    """The commit of this code, in 40 hexadecimal digits, with "-dirty" behind it where tracked files differ from it. None outside a git
    checkout, and where git is absent."""
    if not (ROOT / ".git").exists():  # installed without its history, perhaps inside of another repository
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
    """Library -> its version, of those that are installed."""
    found = {}
    for name, distribution in LIBRARIES.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            continue
    return found
