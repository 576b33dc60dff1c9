"""Score a COCO results file: `python -m eval.captions results.json annotations.json [--instances instances.json] [--subset]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import tyro

from data.files import write_text
from data.shards import DataError
from eval import EvalError
from eval.captions.coco import score
from eval.harness.screen import show


def main(
    results: Annotated[Path, tyro.conf.Positional],
    annotations: Annotated[Path, tyro.conf.Positional],
    instances: Path | None = None,
    subset: bool = False,
    out: Path | None = None,
) -> None:
    """Score captions with BLEU, ROUGE-L, CIDEr-D, METEOR, SPICE, and CHAIR where objects are annotated.

    Args:
        results: captions, one for each image: [{"image_id": 42, "caption": "..."}, ...].
        annotations: references, such as captions_val2014.json.
        instances: annotated objects, such as instances_val2014.json, for CHAIR.
        subset: score the images that have a caption, though others have none.
        out: also write the numbers of every image here, one JSON line each.
    """
    try:
        cells, records = score(results, annotations, instances, subset=subset)
        show(cells)
        if out:
            write_text(out, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    except (EvalError, DataError, OSError) as error:
        sys.exit(f"captions: {error}")


if __name__ == "__main__":
    tyro.cli(main)
