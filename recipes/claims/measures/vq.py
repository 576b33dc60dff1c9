"""How well an image tokenizer preserves objects: `python -m recipes.claims.measures.vq .runs/vq-tiny-s0 [--data .data/scenes-tiny]`.

Images of the drawing task's single-object prompts are encoded and decoded, and a recogniser reads colour, shape, size and fill from the
reconstructions. The accuracy is an upper bound for models that generate images with these tokens. Results are written to kept.json in the
run folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random
from typing import Any

import models
from data.files import write_json
from data.sample import Sample
from data.scenes.build import sample_of
from data.scenes.compose import compose
from eval.harness.source import from_shards
from eval.scenes.oracle import preset_of
from eval.scenes.recogniser import looks, recogniser_of
from eval.tasks.drawing import seen_prompts
from models.shared.device import resolve_device


def kept(tokenizer: Any, recogniser: Any, samples: list[Sample]) -> dict[str, float]:
    """Shares of single-object samples whose reconstruction has the correct "colour", "shape", "size" and "fill". A reconstruction without
    a recognised object counts as wrong."""
    pictures = tokenizer.paint(tokenizer.tokens([sample.image for sample in samples]))
    read = [looks(things[0]) if things else {} for things, _ in recogniser.recognise(pictures)]
    truth = [looks(sample.objects[0]) for sample in samples]
    return {name: sum(r.get(name) == t[name] for r, t in zip(read, truth, strict=True)) / len(samples) for name in truth[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how well an image tokenizer preserves objects")
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", default=".data/scenes-tiny")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    source = from_shards(args.data)
    preset = preset_of(source.samples(source.primary)[0].image)
    prompts = [prompt for prompt in seen_prompts() if prompt.count(" a ") + prompt.count(" an ") == 0]
    samples = [sample_of(compose(prompt, preset, Random(prompt)), number) for number, prompt in enumerate(prompts)]
    shares = kept(models.load(args.run, str(resolve_device(args.device))), recogniser_of(source), samples)
    write_json(args.run / "kept.json", {"data": args.data, "pictures": len(samples), "shares": shares})
    print(f"{args.run.name}, {len(samples)} pictures: " + ", ".join(f"{name} {share:.3f}" for name, share in shares.items()))


if __name__ == "__main__":
    main()
