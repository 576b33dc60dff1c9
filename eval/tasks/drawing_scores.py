"""How well drawings fit their prompts, by other models: CLIPScore (`eval.judges.clipscore`), VQAScore (`eval.judges.vqascore`).

The prompts are those of `eval.tasks.drawing`; for data without them, the first captions of 200 samples of each split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from data.sample import Sample
from eval.base.capabilities import Drawer, Images
from eval.base.records import Record
from eval.base.task import Measure
from eval.harness.source import Source, spread
from eval.judges.clipscore import NO_CLIP, NamedCLIP
from eval.judges.vqascore import NO_JUDGE, QUESTION, Judge
from eval.tasks import drawing

ORDER = 160
HEADLINE: tuple[str, ...] = ()

CAPTIONS = 200  # drawing costs much more than scoring


def plan(source: Source) -> list[DrawingScores]:
    prompted = {task.split: task.samples for task in drawing.plan(source)}
    if not prompted:
        captioned = {split: [sample for sample in source.samples(split) if sample.captions] for split in source.evaluated}
        prompted = {split: spread(samples, CAPTIONS) for split, samples in captioned.items() if samples}
    return [DrawingScores(split, samples, source.clip, source.judge) for split, samples in prompted.items()]


@dataclass
class DrawingScores:
    split: str
    samples: Sequence[Sample]  # a prompt is the first caption
    clip: NamedCLIP | None
    judge: Judge | None
    name: ClassVar[str] = "drawing_scores"
    part: str = ""
    gallery: ClassVar[bool] = False
    needs: ClassVar[type] = Drawer
    needed_method: ClassVar[str] = "draw"

    def __post_init__(self) -> None:
        by_clip, by_judge = (f"by {each.name}" if each else "" for each in (self.clip, self.judge))
        self.measures: Sequence[Measure] = [
            Measure("CLIPScore", by_clip, missing=NO_CLIP, unit="score"),
            Measure("VQAScore", by_judge, missing=NO_JUDGE),
        ]

    def settings(self) -> dict[str, Any]:
        clip, judge = self.clip, self.judge
        return {
            "version": 1,
            "prompts": self.texts(),
            "clip": clip and [clip.name, clip.weights, clip.prefix],
            "judge": judge and [judge.name, judge.weights, QUESTION],
        }

    def texts(self) -> list[str]:
        return list(dict.fromkeys(sample.captions[0] for sample in self.samples))

    def ask(self, drawer: Drawer, images: Images, rows: Sequence[int]) -> list[list[Record]]:
        if not (self.clip or self.judge):
            return [[{}] for _ in rows]
        prompts = [self.samples[row].captions[0] for row in rows]
        drawings = drawer.drawings(prompts)
        records: list[Record] = [{"prompt": prompt, "drawing": drawing} for prompt, drawing in zip(prompts, drawings, strict=True)]
        scores = {"CLIPScore": self.clip.clip_score(drawings, prompts)} if self.clip else {}
        scores |= {"VQAScore": self.judge.vqa_score(drawings, prompts)} if self.judge else {}
        for name, values in scores.items():
            for record, value in zip(records, values.tolist(), strict=True):
                record[name] = value
        return [[record] for record in records]

    def chance(self) -> list[list[Record]]:
        return []
