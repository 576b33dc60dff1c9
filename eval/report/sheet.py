"""Write `drawings.png`, a contact sheet of generated images with their prompts, framed green if colours and shapes are correct."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import wrap
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from eval.harness.source import spread

COLUMNS, ROWS = 8, 6
SIDE, FRAME, LINE = 96, 2, 12  # size of a drawing, of its frame, and of a line of text, in pixels
LINES = 3
GREEN, RED = (40, 150, 60), (200, 50, 50)


def write_sheet(records: Path) -> None:
    """Write up to 48 drawings, evenly spread over the finished records of the task "drawing", to `drawings.png` in the same folder."""
    lines = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    shown: list[dict[str, Any]] = spread([line for line in lines if "drawing" in line], COLUMNS * ROWS)
    width, height = SIDE + 4 * FRAME, SIDE + 4 * FRAME + LINES * LINE
    columns = min(COLUMNS, len(shown))
    sheet = Image.new("RGB", (columns * width, -(-len(shown) // columns) * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for number, record in enumerate(shown):
        x, y = number % columns * width + FRAME, number // columns * height + FRAME
        right = record.get("colour+shape", record.get("two objects"))
        pen.rectangle((x, y, x + SIDE + 2 * FRAME - 1, y + SIDE + 2 * FRAME - 1), fill=GREEN if right else RED)
        with Image.open(records.parent / record["drawing"]) as drawing:
            sheet.paste(drawing.resize((SIDE, SIDE), Image.Resampling.NEAREST), (x + FRAME, y + FRAME))
        text = "\n".join(wrap(record["prompt"], width=SIDE // 5)[:LINES])
        pen.multiline_text((x, y + SIDE + 2 * FRAME), text, fill="black", font=font, spacing=1)
    partial = records.with_name("drawings.partial.png")
    sheet.save(partial)
    partial.replace(records.with_name("drawings.png"))
