"""Boxes as text, `{<left><top><right><bottom>}` in hundredths of the image's sides (MiniGPT-v2, arXiv 2310.09478)."""

from __future__ import annotations

import re

from data.objects import Box

PARTS = 100
ROUNDING = 1e-9  # a share that was an integer stays one
_BOX = re.compile(r"\{\s*" + r"\s*".join([r"<\s*(\d{1,3})\s*>"] * 4) + r"\s*\}")


def box_text(box: Box, height: int, width: int) -> str:
    """The text of a box in an image of this size in pixels. Shares are cut to integers, as in the released code."""
    shares = (PARTS * value / side for value, side in zip(box, (width, height, width, height), strict=True))
    return "{" + "".join(f"<{min(max(int(share + ROUNDING), 0), PARTS)}>" for share in shares) + "}"


def boxes_in(text: str, height: int, width: int) -> list[Box]:
    """The boxes that a text mentions, in order, in pixels of an image of this size. What leaves the image, or has no area, is no box."""
    found = []
    for match in _BOX.finditer(text):
        left, top, right, bottom = (int(number) for number in match.groups())
        if left < right <= PARTS and top < bottom <= PARTS:
            found.append((left * width / PARTS, top * height / PARTS, right * width / PARTS, bottom * height / PARTS))
    return found
