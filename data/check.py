"""`python -m data.check SPEC` (`make check-data DATA=SPEC`): reads a data set and reports what training would use and drop.

Shards without an index.json get one, so that the loader knows their number of samples and their size in memory.
Exit status 1 if some split cannot be used.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from data.decode import Members, Tally, decode, is_further, is_read, read_shard
from data.loader import MEMORY_BUDGET
from data.sample import IMAGE_EXTENSIONS, Sample
from data.shards import DataError, Split, class_names, content_hash, find, fingerprint, split_folder, splits, tars_in, write_index

MAX_DROP_SHARE = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.check", description=__doc__.partition("\n")[0])
    parser.add_argument("spec", help="data set folder, folder of tars, or tars such as '/x/{00000..00012}.tar'")
    parser.add_argument("--write-index", action="store_true", help="rewrite index.json even where there is one")
    arguments = parser.parse_args()
    try:
        names = splits(arguments.spec)
        if not names:
            raise DataError(f"{arguments.spec} has no tar files, neither in itself nor in its folders")
        usable = [check(arguments.spec, name, rewrite=arguments.write_index) for name in names]
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if all(usable) else 1)


@dataclass
class Findings:
    """The contents of the shards of one split."""

    tally: Tally = field(default_factory=Tally)
    shards: list[dict[str, Any]] = field(default_factory=list)  # entries for the index
    samples: int = 0  # usable ones
    sizes: list[tuple[int, int]] = field(default_factory=list)  # height and width of each image
    captions: list[int] = field(default_factory=list)  # per sample
    words: list[int] = field(default_factory=list)  # per caption
    texts: Counter[int] = field(default_factory=Counter)  # hashes of captions
    keys: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)  # samples that have questions, foils, objects
    imageless: Counter[str] = field(default_factory=Counter)  # extensions in samples without an image
    unread: Counter[str] = field(default_factory=Counter)  # extensions of members that are not read


def check(spec: str | Path, name: str, *, rewrite: bool = False) -> bool:
    """Read one split, print the findings, write a missing index. Returns whether the split can be used for training."""
    split, stale = _find_even_if_stale(spec, name)
    found = _read(split)
    if split.hash and split.folder and content_hash(found.shards) != split.hash:
        stale = f"the tars have changed since {split.folder / 'index.json'} was written"
    print(f"\n{split.name}/{split.split}: {found.samples} usable samples of {found.tally.seen} in {len(split.urls)} shards")
    for title, text in _report(found, split.folder):
        print(f"  {title:<10} {text}")
    fatal = _fatal(found) or (stale if not rewrite else "")
    if fatal:
        print(f"  {'UNUSABLE':<10} {fatal}")
    else:
        print(f"  {'index':<10} {_index(split, found, rewrite)}")
    return not fatal


def _find_even_if_stale(spec: str | Path, name: str) -> tuple[Split, str]:
    """The split, and an error message if its index does not match its tars; in that case the split is read from the tars only."""
    try:
        return find(spec, name), ""
    except DataError as error:
        folder = next((folder for folder in (split_folder(Path(spec), name), Path(spec)) if tars_in(folder)), None)
        if folder is None:
            raise
        split = find("::".join(map(str, tars_in(folder))), name)
        return replace(split, name=folder.parent.name if folder.name == name else folder.name, folder=folder), str(error)


def _read(split: Split) -> Findings:
    found = Findings()
    for url in track(split.urls, description=f"{split.name}/{split.split}", disable=not sys.stderr.isatty()):
        samples = decoded_bytes = 0
        for members in read_shard(url, found.tally):
            found.unread.update(extension for extension in members if not extension.startswith("__") and not is_read(extension))
            sample = decode(members, (), found.tally)
            if sample is None:
                _note_imageless(members, found)
            else:
                _note(sample, found)
                found.unread.update(extension for extension in members if is_further(extension) and not sample.others)
                samples += 1
                decoded_bytes += sample.decoded_bytes
        if url.startswith("/"):
            entry = {"file": Path(url).name, "samples": samples, "decoded_bytes": decoded_bytes}
            found.shards.append(entry | fingerprint(Path(url)))
    return found


def _note(sample: Sample, found: Findings) -> None:
    found.samples += 1
    found.sizes.extend(image.shape[:2] for image in sample.images)
    found.captions.append(len(sample.captions))
    found.words.extend(len(caption.split()) for caption in sample.captions)
    found.texts.update(hash(caption) for caption in sample.captions)
    found.keys[sample.key] += 1
    if sample.label is not None:
        found.labels[sample.label] += 1
    found.fields.update(name for name in ("questions", "foils", "objects", "page") if getattr(sample, name))


def _note_imageless(members: Members, found: Findings) -> None:
    if not any(extension in members for extension in IMAGE_EXTENSIONS):
        found.imageless.update(extension for extension in members if not extension.startswith("__"))


def _report(found: Findings, folder: Path | None) -> list[tuple[str, str]]:
    lines = [("dropped", f"{count} x {reason}") for reason, count in found.tally.drops.most_common()]
    lines += [("example", example) for example in found.tally.examples[:5]]
    lines += [("layout", hint) for hint in _layout_hints(found, folder)]
    if found.unread:
        lines.append(("not read", ", ".join(f".{extension} in {count}" for extension, count in found.unread.most_common(10))))
    if not found.sizes:
        return lines
    height, width = np.median(found.sizes, axis=0).astype(int)
    (low_h, low_w), (high_h, high_w) = np.min(found.sizes, axis=0), np.max(found.sizes, axis=0)
    decoded = sum(height * width * 3 for height, width in found.sizes)
    held = "held in memory" if decoded <= MEMORY_BUDGET else "streamed"
    several = f"{len(found.sizes) / found.samples:.1f} per sample; " if len(found.sizes) > found.samples else ""
    lines.append(
        ("images", f"{several}{width} x {height} median, {low_w} x {low_h} to {high_w} x {high_h}; {decoded / 1e6:.0f} MB decoded: {held}")
    )
    if found.words:
        middle, long, longest = np.percentile(found.words, (50, 95, 100)).astype(int)
        repeated = 1 - len(found.texts) / len(found.words)
        per_image = f"{np.mean(found.captions):.1f} per image ({min(found.captions)} to {max(found.captions)})"
        lines.append(
            ("captions", f"{per_image}; words: median {middle}, 95% up to {long}, longest {longest}; {repeated:.1%} repeat a text")
        )
    if found.labels:
        largest = ", ".join(f"{label} {count}" for label, count in found.labels.most_common(5))
        lines.append(("classes", f"{len(found.labels)} ({largest}{', ...' if len(found.labels) > 5 else ''})"))
    if found.fields:
        lines.append(("also", ", ".join(f"{name} in {count}" for name, count in found.fields.most_common())))
    if repeats := found.samples - len(found.keys):
        lines.append(("keys", f"{repeats} keys occur in several shards; evaluation will call the later ones key#2, key#3, ..."))
    return lines


def _layout_hints(found: Findings, folder: Path | None) -> list[str]:
    """Probable causes where members do not form samples as WebDataset expects."""
    hints = []
    dotted = [extension for extension in found.imageless if extension.rpartition(".")[2] in IMAGE_EXTENSIONS]
    if dotted:
        hints.append(
            f"a key ends at the first dot of the file name, so `name.{dotted[0]}` has no image but a member {dotted[0]!r}. "
            "Write names without further dots: `name_1.jpg`, `name_1.txt`"
        )
    elif found.tally.drops["no image"]:
        met = ", ".join(f".{extension}" for extension, _ in found.imageless.most_common(5))
        expected = ", ".join(f".{extension}" for extension in IMAGE_EXTENSIONS)
        hints.append(
            f"samples without an image have the members {met}. Expected {expected}, and one key for all members of a sample, "
            "folders included: `0001.jpg`, `0001.txt`, `0001.json`"
        )
    if found.sizes and not (found.words or found.labels or found.fields):
        hints.append(
            "no sample has a caption, a label or a question: only models that need none, such as `make train-vq`, train on these images. "
            "Texts would be .txt or .json members next to the images"
        )
    if found.tally.drops["duplicate key"]:
        hints.append("a key occurs again after another key: the members of a sample must be neighbours in the tar (`tar --sort=name`)")
    if found.labels and all(label.isdecimal() for label in found.labels):
        hints.append("the classes are numbers: write their names, one a line from class 0 on, into classnames.txt beside or above the tars")
    if folder is not None:
        names = Counter(filter(None, class_names(folder)))
        if repeated := [name for name, count in names.items() if count > 1]:
            hints.append(f"classnames.txt names {len(repeated)} classes twice, such as {repeated[0]!r}: they count as one")
        hints += _missing_shards(folder)
    return hints


def _missing_shards(folder: Path) -> list[str]:
    """CLIP_benchmark's layout says how many tars there are."""
    path, there = folder / "nshards.txt", len(tars_in(folder))
    text = path.read_text(errors="replace").strip() if path.is_file() else ""
    return [f"{path} says {text} tars, but there are {there}"] if text.isdecimal() and int(text) != there else []


def _fatal(found: Findings) -> str:
    if not found.sizes:
        return "no usable sample"
    if found.tally.dropped > MAX_DROP_SHARE * found.tally.seen:
        return f"{found.tally.dropped} of {found.tally.seen} samples are dropped, more than {MAX_DROP_SHARE:.0%}"
    return ""


def _index(split: Split, found: Findings, rewrite: bool) -> str:
    if split.folder is None:
        return "none (only a folder of tars can have one)"
    path = split.folder / "index.json"
    if path.exists() and not rewrite:
        return f"{path} agrees with the tars"
    if not os.access(split.folder, os.W_OK):
        return f"none: {split.folder} is not writable, so the number of samples stays unknown"
    classes = split.classes or sorted(found.labels) or None
    write_index(split.folder, name=split.name, split=split.split, shards=found.shards, classes=classes, dropped=found.tally.drops)
    return f"written to {path}"


if __name__ == "__main__":
    main()
