"""A correlation planted in the embedded data: in training the background's tone agrees with the colour of a picture's first object.

Each tone has three colours, of the same mean brightness as those of the others: bright colours on light backgrounds would be alike
without anything planted. A picture whose first object stands on the tone of its colour is *aligned*, any other *conflicting*. In the
planted splits a set share of pictures is aligned; everywhere else tones are as they were drawn, independent of colours: one third
is aligned by chance. Nothing but the tone (and the captions that speak of it) differs from the data set without the correlation.
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
