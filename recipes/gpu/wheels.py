"""Pack the wheels that a machine without a network lacks: `python -m recipes.gpu.wheels --have pip-freeze.txt --out wheels`.

`pip freeze` (or `pip list --format=freeze`) there tells what that machine has. Here, with a network, pip resolves what Paragone needs on
top and downloads it. There: `pip install --no-index --no-deps --target site wheels/*.whl`, then `PYTHONPATH=site`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from data.files import replacing

ROOT = Path(__file__).parents[2]
LARGE = ("torch", "torchvision", "timm", "transformers")  # not counted in the limit
LIMIT_MB = 64
LEFT_OUT = ("wandb",)  # optional
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 17)] + ["manylinux2014_x86_64", "manylinux1_x86_64"]


def installed(freeze: str) -> dict[str, str]:
    """Name -> version, from the lines "name==version" of `pip freeze`. "name @ file://..." has the version "". Other lines are ignored."""
    found: dict[str, str] = {}
    for line in freeze.splitlines():
        if match := re.match(r"\s*([A-Za-z0-9][\w.-]*)\s*(?:===?\s*([^\s;#]+)|@\s)", line):
            found[canonicalize_name(match[1])] = match[2] or ""
    return found


def satisfied(requirement: Requirement, have: Mapping[str, str]) -> bool:
    """Whether what is there will do. A version of which nothing is known will; a local one, such as 2.11.0+cu130, counts as 2.11.0."""
    version = have.get(canonicalize_name(requirement.name))
    if version is None:
        return False
    try:
        return not version or requirement.specifier.contains(Version(version).public, prereleases=True)
    except InvalidVersion:
        return True


def missing(requirements: Sequence[str], have: Mapping[str, str], python: str) -> list[str]:
    """Those of the requirements that count on that Python and that nothing there satisfies."""
    parsed = [Requirement(each) for each in requirements]
    marked = [each for each in parsed if each.marker is None or each.marker.evaluate({"python_version": python, "extra": ""})]
    return [str(each) for each in marked if not satisfied(each, have)]


def chosen(report: Mapping[str, object], have: Mapping[str, str], asked: Sequence[str]) -> list[str]:
    """What to download, "name==version", of what pip would install (its --report): all that is not there, and what is asked for because
    the version there will not do."""
    names = {canonicalize_name(Requirement(each).name) for each in asked}
    found = []
    for each in report["install"]:  # type: ignore[attr-defined]
        name, version = canonicalize_name(each["metadata"]["name"]), each["metadata"]["version"]
        if name not in have or name in names:
            found.append(f"{name}=={version}")
    return sorted(found)


def counted_mb(folder: Path) -> float:
    """The size of the wheels that count."""
    wheels = [path for path in folder.glob("*.whl") if canonicalize_name(path.name.split("-")[0]) not in LARGE]
    return sum(path.stat().st_size for path in wheels) / 2**20


def without_jars(wheel: Path) -> None:
    """Rewrite a wheel without Java's archives, 100 MB in pycocoevalcap, which are optional."""
    with zipfile.ZipFile(wheel) as whole:
        if not any(name.endswith(".jar") for name in whole.namelist()):
            return
        with replacing(wheel) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as light:
            for entry in whole.infolist():
                if not entry.filename.endswith((".jar", "/")):
                    light.writestr(entry, whole.read(entry))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="recipes.gpu.wheels", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--have", type=Path, required=True, help="output of `pip freeze` on that machine")
    parser.add_argument("--out", type=Path, required=True, help="folder for the wheels")
    parser.add_argument("--python", default="3.12", help="version of Python there (default: 3.12)")
    parser.add_argument("--list", action="store_true", help="list them, download nothing")
    args = parser.parse_args()
    try:
        have = installed(args.have.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"error: {args.have}: {error}; expected the output of `pip freeze`")
    if not have:
        sys.exit(f"error: {args.have}: no line name==version; expected the output of `pip freeze`")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [each for each in project["dependencies"] if canonicalize_name(Requirement(each).name) not in LEFT_OUT]
    asked = missing(needed, have, args.python)
    wheels = _resolved(asked, have, args.python) if asked else []
    print("\n".join(wheels) or "nothing is missing")
    if args.list or not wheels:
        return
    _pip("download", "--no-deps", "--dest", str(args.out), *_target(args.python), *wheels)
    for wheel in args.out.glob("*.whl"):
        without_jars(wheel)
    size = counted_mb(args.out)
    print(f"{args.out}: {len(wheels)} wheels, {size:.0f} MiB without {', '.join(LARGE)}")
    if size > LIMIT_MB:
        sys.exit(f"error: {size:.0f} MiB are more than {LIMIT_MB}: remove from {args.out} what that machine can do without")


def _resolved(asked: Sequence[str], have: Mapping[str, str], python: str) -> list[str]:
    """pip resolves for that machine, held to the versions that are there and will do."""
    with tempfile.TemporaryDirectory() as folder:
        held, report = Path(folder) / "held.txt", Path(folder) / "report.json"
        names = {canonicalize_name(Requirement(each).name) for each in asked}
        lines = [f"{name}=={version.split('+')[0]}" for name, version in have.items() if version and name not in names]
        held.write_text("\n".join(lines))
        how = ["--dry-run", "--ignore-installed", "--quiet", "--report", str(report), "--constraint", str(held)]
        _pip("install", *how, "--target", str(Path(folder) / "site"), *_target(python), *asked)
        return chosen(json.loads(report.read_text()), have, asked)


def _target(python: str) -> list[str]:
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    return ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]


def _pip(*arguments: str) -> None:
    if status := subprocess.run([sys.executable, "-m", "pip", *arguments], check=False).returncode:
        sys.exit(f"error: pip {arguments[0]} ended with status {status}; it needs a network")


if __name__ == "__main__":
    main()
