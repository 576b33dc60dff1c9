"""A correlation planted in the embedded data: in training the background's tone agrees with the colour of a picture's first object.

Each tone has three colours, with the same mean brightness as those of the other tones: bright colours on light backgrounds would be
similar without any correlation. A picture whose first object is on the tone of its colour is *aligned*, any other *conflicting*. In
the planted splits a fixed share of pictures is aligned; in the others tones are independent of colours, and one third is aligned by
chance. Only the tone (and captions that mention it) differs from the data set without the correlation.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from data.sample import Sample
from data.scenes.world import TONES, Scene

PLANTED_SPLITS = ("train", "val")
COLOURS_OF = {"light": ("red", "yellow", "brown"), "dark": ("blue", "orange", "cyan"), "grey": ("green", "purple", "pink")}
TONE_OF = {colour: tone for tone, colours in COLOURS_OF.items() for colour in colours}


def plant(scene: Scene, share: float, rng: Random) -> Scene:
    """The scene on the tone of its first object's colour with probability `share`, or else on one of the two others."""
    own = TONE_OF[scene.things[0].colour]
    aligned = rng.random() < share
    return replace(scene, tone=own if aligned else rng.choice([tone for tone in TONES if tone != own]))


def group_of(sample: Sample) -> str:
    """ "aligned" or "conflicting", of any sample of scenes."""
    return "aligned" if TONE_OF[sample.objects[0].attributes["colour"]] == sample.extra["tone"] else "conflicting"
