"""The content of a caption compared with the truth of an embedded picture: objects, attributes, counts and relations.

A caption is parsed by `data.scenes.language.parse`. A mentioned object matches the true one with its colour and shape. Colours,
shapes, sizes and fills are also counted by themselves, for whichever object, so that one can be right where another is
wrong: "a blue star and a red moon" of a red star and a blue moon has both colours and both shapes, but neither object.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from data.sample import Sample
from data.scenes.language import ATTRIBUTES, Claims, agreement, meant, parse
from eval.base.records import Record
from eval.base.task import Measure

THINGS = ("object", "colour", "shape", "size", "fill")
SILENT = "no caption mentions one"


def measures() -> list[Measure]:
    found = []
    for thing in THINGS:
        found += [
            Measure(f"{thing} F1", "harmonic mean of precision and recall", weight=f"{thing}s said and there"),
            Measure(f"{thing} precision", "share of mentioned ones that are present", weight=f"{thing}s said", missing=SILENT),
            Measure(f"{thing} recall", "share of present ones that are mentioned", weight="objects there"),
        ]
    return [
        *found,
        Measure("count", "the right number of objects"),
        Measure("relation precision", "share of stated relations that hold", weight="relations said", missing=SILENT),
        Measure("says a relation", "share of the pictures with a clear direction", better="neither"),
        Measure("all objects", "colour and shape of every object, and no other object"),
        Measure("all details", "also their sizes and fills"),
        Measure("all true", "no false claim"),
    ]


def content(caption: str, sample: Sample) -> Record:
    """The fields of `measures` for one caption of a scenes sample."""
    claims = parse(caption)
    truth = [{"shape": thing.name} | thing.attributes for thing in sample.objects]
    found = meant(claims, sample.objects)
    said, right = _counts(claims, truth, found)
    record: Record = {"objects there": len(truth)}
    for thing in THINGS:
        record |= {f"{thing}s said": said[thing], f"{thing}s said and there": said[thing] + len(truth)}
        record |= {f"{thing} precision": right[thing], f"{thing} recall": right[thing], f"{thing} F1": 2 * right[thing]}
    relations = [list(relation) for relation in sample.extra["relations"]]
    record["relations said"] = len(claims.relations)
    record["relation precision"] = sum([found[i], name, found[j]] in relations for i, name, j in claims.relations)
    if relations:
        record["says a relation"] = float(bool(claims.relations))
    record["count"] = float(len(claims.objects) == len(truth) and claims.count in (None, len(truth)))
    record["all objects"] = float(_described(claims.objects, ("colour", "shape")) == _described(truth, ("colour", "shape")))
    record["all details"] = float(_described(claims.objects, ATTRIBUTES) == _described(truth, ATTRIBUTES))
    record["all true"] = float(agreement(caption, sample) == 1)
    return record


def _counts(claims: Claims, truth: Sequence[dict[str, str]], found: Sequence[int | None]) -> tuple[Counter[str], Counter[str]]:
    """How many of THINGS are said, and how many of these are there."""
    said, right = Counter(object=len(found)), Counter(object=sum(index is not None for index in found))
    for name in ATTRIBUTES:
        spoken = Counter(each[name] for each in claims.objects if name in each)
        said[name], right[name] = spoken.total(), (spoken & Counter(each[name] for each in truth)).total()
    return said, right


def _described(objects: Sequence[dict[str, str]], names: Sequence[str]) -> Counter[tuple[str | None, ...]]:
    return Counter(tuple(each.get(name) for name in names) for each in objects)
