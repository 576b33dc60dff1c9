"""Take a screenshot of the report's first screen, for the README: `python -m eval.report.picture --out report.png` (= `make picture`).

Requires Chromium or Chrome, which pip cannot install: `apt-get install chromium`, or name its command with --browser.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import tyro
from PIL import Image

from eval import EvalError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 180  # seconds
COLOURS = 256  # palette size of the PNG, enough for text and small images


def picture(
    *, out: Path, report: Path = Path(".runs/compare/report.html"), width: int = 1280, height: int = 900, browser: str = ""
) -> None:
    """Take a screenshot of the report.

    Args:
        out: PNG file to write.
        report: HTML report written by `make compare`.
        width: width of the window in pixels; 390 is typical of a phone.
        height: height of the window in pixels.
        browser: command of Chromium or Chrome. Default: the first one found.
    """
    if not report.exists():
        raise EvalError(f"{report} is missing: `make compare` writes it")
    command = found(browser)
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/profile"]
        options += [f"--window-size={width},{height}", f"--screenshot={shot}", report.resolve().as_uri()]
        try:
            done = subprocess.run([command, *options], capture_output=True, text=True, timeout=PATIENCE, check=False)
        except subprocess.TimeoutExpired as error:
            raise EvalError(f"{command} took no screenshot of {report} within {PATIENCE} s; try again on a less busy machine") from error
        if not shot.exists():
            said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
            raise EvalError(f"{command} took no screenshot of {report} (exit {done.returncode}); its last message: {said[0]}")
        with Image.open(shot) as image:
            small = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    out.parent.mkdir(parents=True, exist_ok=True)
    small.save(out, optimize=True)
    print(f"{out}: {small.width} x {small.height}, {out.stat().st_size / 1000:.0f} kB")


def found(browser: str = "") -> str:
    """The path of an installed browser. Raises EvalError if there is none."""
    for name in [browser] if browser else BROWSERS:
        if command := shutil.which(name):
            return command
    wanted = f"no {browser!r} found" if browser else f"no Chromium or Chrome found (looked for {', '.join(BROWSERS)})"
    raise EvalError(f"{wanted}: install one, for example with `apt-get install chromium`, or name one with --browser")


if __name__ == "__main__":
    try:
        tyro.cli(picture)
    except EvalError as error:
        sys.exit(f"picture: {error}")
