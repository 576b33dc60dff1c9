"""Filter a data set: `python -m recipes.filter .data/pool-tiny --by clip,duplicates --clip RUN --share 0.3` (= `make filter DATA= BY=`).

Writes the list of the samples to keep, for `make train-clip ARGS="--keep LIST"` (data/keep.py), and says what each filter keeps. With
several filters a sample must pass all of them; each one judges the whole pool. Where the pool knows what is wrong with its samples,
precision is the share of clean samples among the kept, and recall the share of the clean samples that are kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from data.fields import require
from data.files import FileError
from data.importers.write import read_text
from data.shards import DataError, Split, find
from eval import EvalError
from models.shared.device import resolve_device
from recipes.filter.filters import Cut, Filter
from recipes.filter.pictures import Blur, Duplicates
from recipes.filter.pool import report, see, write_kept
from recipes.filter.scores import CLIPScore, Random, Truth, load_clip
from recipes.filter.text import Boilerplate, Length, Mentions

Make = Callable[[argparse.Namespace, Split], Filter]

FILTERS: dict[str, tuple[str, Make]] = {
    "clip": ("score of a CLIP: --clip, and --share or --least", lambda a, _: clip_score(a)),
    "length": ("caption of --words or more", lambda a, _: Length(a.words, a.characters, a.most_words)),
    "boilerplate": ("no caption that many others have: --repeats", lambda a, _: Boilerplate(a.repeats)),
    "text": ("caption that mentions one of --entities", lambda a, split: Mentions(entities(a, split))),
    "duplicates": ("the first of exact and near duplicates: --distance", lambda a, _: Duplicates(a.distance)),
    "blur": ("sharp picture: --sharpness", lambda a, _: Blur(a.sharpness)),
    "random": ("control: a random --share", lambda a, _: Random(Cut(a.share), a.seed)),
    "truth": ("control: the clean samples of a pool that knows them", lambda a, _: Truth()),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="recipes.filter", description="Filter a data set: write the list of the samples to keep.")
    parser.add_argument("data", help="data set folder, folder of shards, or shard pattern")
    parser.add_argument("--by", default="", help="; ".join(f"{name}: {about}" for name, (about, _) in FILTERS.items()))
    parser.add_argument("--out", type=Path, help="list to write (default: keep-<filters>.jsonl beside the data)")
    parser.add_argument("--split", default="train")
    parser.add_argument("--share", type=float, help="share of the samples that clip and random keep, such as 0.3")
    parser.add_argument("--least", type=float, help="least score that clip keeps, instead of a share")
    parser.add_argument("--clip", default="", help="run folder of a CLIP, or published weights: open_clip:ViT-B-32/laion2b_s34b_b79k")
    parser.add_argument("--words", type=int, default=3)
    parser.add_argument("--most-words", type=int, default=1000)
    parser.add_argument("--characters", type=int, default=6)
    parser.add_argument("--repeats", type=float, default=0.005, help="largest share of the samples that have a caption")
    parser.add_argument("--entities", type=Path, help="file with one name per line (default: the class names of the data set)")
    parser.add_argument("--distance", type=float, default=0.25, help="of thumbnails, up to which pictures are duplicates")
    parser.add_argument("--sharpness", type=float, default=0.3, help="least sharpness")
    parser.add_argument("--seed", type=int, default=0, help="of random")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    try:
        run(arguments)
    except (DataError, EvalError, OSError, ValueError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")


def run(arguments: argparse.Namespace) -> None:
    split = find(arguments.data, arguments.split)
    by = [name.strip() for name in arguments.by.split(",") if name.strip()]
    unknown = [name for name in by if name not in FILTERS] or [""] * (not by)
    require(not unknown, "BY", arguments.by, f"one or more of {', '.join(FILTERS)}, separated by commas")
    by = list(dict.fromkeys(by))
    out = arguments.out or beside(split, by, arguments)
    filters = {name: FILTERS[name][1](arguments, split) for name in by}
    pool = see(split, filters.values())
    for line in report(write_kept(pool, {name: each.verdict() for name, each in filters.items()}, out), out):
        print(line)


def beside(split: Split, by: list[str], arguments: argparse.Namespace) -> Path:
    """Where the list goes: into the folder of the data set. Raises ValueError where there is none."""
    require(split.folder is not None, "OUT", None, "a file for the list, since the data are no folder of their own")
    assert split.folder is not None
    folder = split.folder if split.folder.resolve() == Path(arguments.data).resolve() else split.folder.parent
    cut = arguments.share if arguments.share is not None else arguments.least
    graded = cut is not None and {"clip", "random"} & set(by)
    return folder / f"keep-{'-'.join(by)}{f'-{cut:g}' if graded else ''}.jsonl"


def clip_score(arguments: argparse.Namespace) -> CLIPScore:
    cut = Cut(arguments.share, arguments.least)
    expected = "the run of a CLIP on these data (`make train-clip DATA=...`), or published weights"
    require(bool(arguments.clip), "CLIP", arguments.clip, expected)
    return CLIPScore(load_clip(arguments.clip, str(resolve_device(arguments.device))), arguments.clip, cut)


def entities(arguments: argparse.Namespace, split: Split) -> Iterator[str]:
    if arguments.entities is None and not split.classes:
        raise FileError("entities: the data set has no class names, so a file is expected with one name per line: ARGS='--entities FILE'")
    return iter(read_text(arguments.entities).split("\n") if arguments.entities else split.classes or ())


if __name__ == "__main__":
    main()
