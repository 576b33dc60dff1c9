"""Which objects a caption mentions, for CHAIR (Rohrbach et al. 2018, arXiv:1809.02156): a vocabulary with synonyms, read longest first.

COCO's 80 categories have a table of synonyms here, our own: the paper's list is longer, so figures are comparable within this
harness and close to, but not the same as, those of its script. Any other data set's objects answer to their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

# Category: other names. Plurals are understood; of names that contain each other the longest is read ("hot dog" is no dog).
COCO: dict[str, str] = {
    "person": "man, woman, boy, girl, child, kid, baby, toddler, infant, adult, guy, lady, gentleman, male, female, human, rider, player, "
    "skier, snowboarder, skater, skateboarder, surfer, pitcher, batter, catcher, umpire, referee, worker, officer, policeman, cop, chef, "
    "cook, waiter, waitress, driver, passenger, pedestrian, cyclist, biker, motorcyclist, cowboy, soldier, student, teacher, nurse, "
    "mother, father, mom, dad, son, daughter, brother, sister, bride, groom, couple, crowd, spectator, tourist, teenager, businessman",
    "bicycle": "bike, cycle, tandem, unicycle, mountain bike, dirt bicycle",
    "car": "automobile, sedan, suv, minivan, taxi, cab, hatchback, jeep, limousine, convertible, police car",
    "motorcycle": "motorbike, motor bike, motor cycle, scooter, moped, dirt bike, vespa",
    "airplane": "plane, aeroplane, aircraft, jet, airliner, jetliner, biplane, seaplane, passenger jet, passenger plane, jumbo jet",
    "bus": "minibus, coach, double decker, school bus, tour bus, trolley bus, passenger bus",
    "train": "locomotive, tram, subway, metro, caboose, passenger train, train car, railway car, trolley",
    "truck": "lorry, pickup, pick up truck, pickup truck, semi, fire truck, fire engine, firetruck, tractor trailer, tow truck",
    "boat": "ship, sailboat, canoe, kayak, ferry, yacht, raft, rowboat, motorboat, speedboat, gondola, barge, dinghy, tugboat, cruise ship",
    "traffic light": "stoplight, stop light, traffic signal, street light signal",
    "fire hydrant": "hydrant",
    "stop sign": "",
    "parking meter": "",
    "bench": "pew, park bench",
    "bird": "duck, goose, gull, seagull, pigeon, parrot, eagle, hawk, owl, swan, ostrich, penguin, chicken, rooster, peacock, pelican, "
    "sparrow, crow, flamingo, heron, stork, parakeet, finch, hen, turkey, dove, cockatoo, hummingbird",
    "cat": "kitten, kitty, feline, tabby",
    "dog": "puppy, pup, canine, hound, poodle, beagle, terrier, bulldog, dachshund, retriever, labrador, corgi, collie, chihuahua, husky",
    "horse": "pony, foal, colt, mare, stallion, mustang",
    "sheep": "lamb, ram, ewe",
    "cow": "cattle, bull, calf, ox, heifer, steer",
    "elephant": "",
    "bear": "polar bear, panda, grizzly, brown bear, black bear",
    "zebra": "",
    "giraffe": "",
    "backpack": "rucksack, knapsack, back pack",
    "umbrella": "parasol",
    "handbag": "purse, pocketbook, hand bag",
    "tie": "necktie, bow tie, bowtie",
    "suitcase": "luggage, briefcase, suit case",
    "frisbee": "disc golf disc",
    "skis": "ski",
    "snowboard": "snow board",
    "sports ball": "ball, soccer ball, tennis ball, baseball ball, basketball, football, volleyball, beach ball",
    "kite": "",
    "baseball bat": "bat",
    "baseball glove": "mitt, catcher's mitt",
    "skateboard": "skate board, longboard",
    "surfboard": "surf board, longboard surfboard, bodyboard",
    "tennis racket": "racket, racquet, tennis racquet",
    "bottle": "beer bottle, wine bottle, water bottle",
    "wine glass": "wineglass, champagne glass, goblet",
    "cup": "mug, teacup, coffee cup",
    "fork": "",
    "knife": "pocketknife, butter knife",
    "spoon": "",
    "bowl": "",
    "banana": "",
    "apple": "",
    "sandwich": "burger, hamburger, cheeseburger, sub sandwich, panini, burrito",
    "orange": "tangerine, clementine",
    "broccoli": "",
    "carrot": "",
    "hot dog": "hotdog, chili dog",
    "pizza": "",
    "donut": "doughnut, bagel",
    "cake": "cupcake, cheesecake, birthday cake, wedding cake, shortcake",
    "chair": "seat, stool, recliner, armchair, rocking chair, high chair",
    "couch": "sofa, loveseat, settee, futon, love seat",
    "potted plant": "houseplant, house plant, plant, flower pot",
    "bed": "bunk bed, mattress",
    "dining table": "table, kitchen table, desk, coffee table",
    "toilet": "urinal, commode, lavatory, toilet seat, toilet bowl",
    "tv": "television, tv set, television set, monitor screen, tv screen",
    "laptop": "notebook computer, laptop computer, netbook, computer, macbook",
    "mouse": "computer mouse",
    "remote": "remote control, controller, game controller, wii remote, wiimote",
    "keyboard": "computer keyboard",
    "cell phone": "phone, cellphone, mobile phone, smartphone, smart phone, iphone, telephone",
    "microwave": "microwave oven",
    "oven": "stove, stove top, range oven",
    "toaster": "",
    "sink": "washbasin, basin",
    "refrigerator": "fridge, freezer",
    "book": "novel, textbook",
    "clock": "clock tower, alarm clock",
    "vase": "",
    "scissors": "scissor, shears",
    "teddy bear": "teddybear, teddy, stuffed bear, stuffed animal",
    "hair drier": "hair dryer, hairdryer, blow dryer",
    "toothbrush": "tooth brush",
}
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
IRREGULAR = {
    "men": "man",
    "women": "woman",
    "people": "person",
    "persons": "person",
    "children": "child",
    "mice": "mouse",
    "geese": "goose",
}
IRREGULAR |= {"knives": "knife", "calves": "calf", "oxen": "ox", "policemen": "policeman", "businessmen": "businessman"}
UNCHANGED = {"bus", "skis", "scissors", "tennis", "glass", "grass", "shears"}


def vocabulary(names: Iterable[str]) -> dict[tuple[str, ...], str]:
    """Words -> object, for a data set whose objects have these names: with COCO's synonyms where all of them are COCO's."""
    names = list(dict.fromkeys(name.lower() for name in names))
    if not set(names) <= set(COCO):
        return {_words(name): name for name in names}
    found = {_words(word): name for name, others in COCO.items() for word in (name, *others.split(", ")) if word}
    animals = [words for words, name in found.items() if name in ANIMALS]
    return found | {(age, *words): found[words] for age in ("baby", "adult") for words in animals}  # "baby elephant": no person


def mentioned(caption: str, words_of: Mapping[tuple[str, ...], str]) -> list[str]:
    """The objects that a caption mentions, each as often as it does, in its order."""
    words = _words(caption)
    longest = max(map(len, words_of), default=0)
    found, start = [], 0
    while start < len(words):
        sizes = [size for size in range(longest, 0, -1) if words[start : start + size] in words_of]
        if sizes:
            found.append(words_of[words[start : start + sizes[0]]])
        start += sizes[0] if sizes else 1
    return found


def _words(text: str) -> tuple[str, ...]:
    return tuple(map(_singular, re.findall(r"[^\W_]+(?:'s)?", text.lower())))


@cache
def _singular(word: str) -> str:
    word = word.removesuffix("'s")
    if word in IRREGULAR or word in UNCHANGED or word.endswith("ss"):
        return IRREGULAR.get(word, word)
    if re.search(r"(?:ch|sh|x|ss|o|bus)es$", word) and word != "shoes":
        return word[:-2]
    if word.endswith("ies") and len(word) > 4 and word != "movies":
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and len(word) > 2 else word


def hallucinated(mentions: Sequence[str], there: Iterable[str]) -> list[str]:
    known = set(there)
    return [name for name in mentions if name not in known]
