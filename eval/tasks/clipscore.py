"""CLIPScore and RefCLIPScore of generated captions, see `eval.judges.clipscore`: always against the sample's own picture,
also in controls that show another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from data.sample import Sample
from eval.base.capabilities import Captioner, Images
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source
from eval.judges.clipscore import NO_CLIP, NamedCLIP
from eval.tasks.captioning import described

ORDER = 70
HEADLINE: tuple[str, ...] = ()


def plan(source: Source) -> list[CLIPScore]:
    return [CLIPScore(split, samples, source.clip) for split, samples in described(source).items()]


@dataclass
class CLIPScore:
    split: str
    samples: Sequence[Sample]
    clip: NamedCLIP | None
    part: str = ""
    name: ClassVar[str] = "clipscore"
    gallery: ClassVar[bool] = False
    needs: ClassVar[type] = Captioner
    needed_method: ClassVar[str] = "caption"

    def __post_init__(self) -> None:
        note = f"by {self.clip.name}" if self.clip else ""
        names = ("CLIPScore", "RefCLIPScore")
        self.measures: Sequence[Measure] = [Measure(name, note, missing=NO_CLIP, unit="score") for name in names]

    def settings(self) -> dict[str, Any]:
        clip = self.clip
        return {"version": 1, "clip": clip and clip.name, "weights": clip and clip.weights, "prefix": clip and clip.prefix}

    def texts(self) -> list[str]:
        return []

    def ask(self, captioner: Captioner, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        if self.clip is None:
            return [[{}] for _ in rows]
        captions = captioner.captions([images[row] for row in rows])
        own, references = [self.samples[row].image for row in rows], [self.samples[row].captions for row in rows]
        scores = self.clip.clip_score(own, captions), self.clip.ref_clip_score(own, captions, references)
        found = zip(captions, *(values.tolist() for values in scores), strict=True)
        return [[{"caption": caption, "CLIPScore": fit, "RefCLIPScore": both}] for caption, fit, both in found]

    def chance(self) -> list[list[Record]]:
        return []
