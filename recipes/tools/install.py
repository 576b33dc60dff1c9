"""Install what the project needs into the environment of the Python that runs this: `python recipes/tools/install.py`; with the name of
an extra of pyproject.toml, what that needs.

The project itself is installed as editable too, unless the environment already holds another checkout of it: several checkouts may share
an environment (VENV=), and each runs its own code from its own folder. Only the standard library is there yet.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]


def arguments(root: Path, installed: Path | None) -> list[str]:
    """What pip must install: the checkout in `root`, or only its dependencies if another checkout is `installed`."""
    if installed is None or installed == root or not installed.exists():
        return ["-e", f"{root}[dev,real]"]
    project = _project(root)
    return [*project["dependencies"], *extra(root, "dev"), *extra(root, "real")]


def extra(root: Path, name: str) -> list[str]:
    found: list[str] = _project(root)["optional-dependencies"][name]
    return found


def _project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def installed_checkout(name: str = "paragone") -> Path | None:
    """The folder of the editable install, None where there is none."""
    try:
        about = distribution(name).read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    url = urlsplit(json.loads(about)["url"]) if about else None
    return Path(unquote(url.path)).resolve() if url and url.scheme == "file" else None


def main() -> None:
    other = installed_checkout()
    wanted = extra(ROOT, sys.argv[1]) if sys.argv[1:] else arguments(ROOT, other)
    if not sys.argv[1:] and "-e" not in wanted:
        print(
            f"{sys.prefix} is installed from another checkout ({other}), which is left unchanged: only dependencies are installed",
            file=sys.stderr,
        )
    sys.exit(subprocess.run([sys.executable, "-m", "pip", "install", *wanted], check=False).returncode)


if __name__ == "__main__":
    main()
