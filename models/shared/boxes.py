"""Boxes as text: `{<left><top><right><bottom>}` in hundredths of the image's sides (MiniGPT-v2, arXiv 2310.09478), or
`(left,top),(right,bottom)` in thousandths (Qwen-VL, arXiv 2308.12966)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from data.objects import Box

ROUNDING = 1e-9  # a share that was an integer stays one


@dataclass(frozen=True)
class Notation:
    """How boxes are written: four integers in `form`, each a share of a side in so many `parts`, at most `last`. A number that is read is a
    share of `last`, so the whole image stays whole."""

    form: str
    parts: int
    last: int

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Blanks are allowed between signs."""
        signs = [r"(\d{1,3})" if part == "#" else re.escape(part) for part in self.form]
        return re.compile(r"\s*".join(signs))


HUNDREDTHS = Notation("{<#><#><#><#>}", parts=100, last=100)  # MiniGPT-v2's
THOUSANDTHS = Notation("(#,#),(#,#)", parts=1000, last=999)  # Qwen-VL's


def box_text(box: Box, height: int, width: int, notation: Notation = HUNDREDTHS) -> str:
    """The text of a box in an image of this size in pixels. Shares are cut to integers, as in the released code of both."""
    text = notation.form
    for value, side in zip(box, (width, height, width, height), strict=True):
        number = min(max(int(notation.parts * value / side + ROUNDING), 0), notation.last)
        text = text.replace("#", str(number), 1)
    return text


def boxes_in(text: str, height: int, width: int, notation: Notation = HUNDREDTHS) -> list[Box]:
    """The boxes that a text mentions, in order, in pixels of an image of this size. What leaves the image, or has no area, is no box."""
    found, last = [], notation.last
    for match in notation.pattern.finditer(text):
        left, top, right, bottom = (int(number) for number in match.groups())
        if left < right <= last and top < bottom <= last:
            found.append((left * width / last, top * height / last, right * width / last, bottom * height / last))
    return found
