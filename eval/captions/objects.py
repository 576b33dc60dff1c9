"""Which objects a caption mentions, for CHAIR (Rohrbach et al. 2018, arXiv:1809.02156).

COCO's 80 categories have the paper's synonyms (data/synonyms.txt of github.com/LisaAnne/Hallucination), read as its script
(utils/chair.py) reads them: words in the singular, a hyphenated word is one word, pairs such as "hot dog" count as one word, each
word that is left is looked up. One thing differs: the script's library makes "bu" of "bus", "ty" of "ties" and "cano" of "canoes",
and so misses them. Any other data set's objects answer to their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

# Category: other names. Plurals are understood.
COCO: dict[str, str] = {
    "person": "adult, baby, baker, bicyclist, biker, boy, bride, buyer, caller, camper, chef, child, cop, cowboy, coworker, doctor, "
    "drinker, driver, father, female, foreigner, gentleman, girl, grandchild, groom, guy, hunter, kid, lady, male, man, mother, "
    "offender, officer, passenger, patient, people, pitcher, player, policeman, politician, rider, serviceman, shopper, sister, "
    "skateboarder, skater, skier, snowboarder, soldier, solider, student, teenager, thief, traveler, trespasser, villager, "
    "walker, woman, worker",
    "bicycle": "bike, unicycle, minibike, trike",
    "car": "automobile, van, minivan, sedan, suv, hatchback, cab, jeep, coupe, taxicab, limo, taxi",
    "motorcycle": "scooter, motor bike, motor cycle, motorbike, moped",
    "airplane": "jetliner, plane, air plane, monoplane, aircraft, jet, airbus, biplane, seaplane",
    "bus": "minibus, trolley",
    "train": "locomotive, tramway, caboose",
    "truck": "pickup, lorry, hauler, firetruck",
    "boat": "barge, battleship, canoe, catamaran, dinghy, ferry, ferryboat, freighter, houseboat, kayak, lifeboat, liner, motorboat, "
    "paddleboat, pontoon, powerboat, riverboat, rowboat, sailboard, sailboat, schooner, ship, skiff, speedboat, steamboat, "
    "steamship, trawler, tugboat, vessel, watercraft, yacht",
    "traffic light": "street light, traffic signal, stop light, streetlight, stoplight",
    "fire hydrant": "hydrant",
    "stop sign": "",
    "parking meter": "",
    "bench": "pew",
    "bird": "blackbird, bluebird, bluejay, buzzard, chickadee, cockatiel, cockatoo, condor, cormorant, cowbird, crow, duck, egret, "
    "falcon, finch, flamingo, fowl, goose, gosling, gull, heron, hummingbird, kingfisher, loon, lorikeet, macaw, magpie, "
    "mallard, oriole, osprey, ostrich, owl, parakeet, parrot, peacock, peafowl, pelican, pheasant, pigeon, puffin, quail, "
    "raven, robin, rooster, sandpiper, seabird, seagull, shorebird, songbird, sparrow, swan, turkey, vulture, warbler, "
    "waterbird, waterfowl, willet, woodpecker",
    "cat": "kitten, feline, tabby",
    "dog": "beagle, brindle, bulldog, canine, chihuahua, cocker, collie, corgi, dachshund, doberman, doggie, doggy, greyhound, hound, "
    "husky, labrador, mutt, pitbull, poodle, pug, pup, puppy, retriever, rottweiler, schnauzer, sheepdog, spaniel, terrier, "
    "weimaraner, whippet",
    "horse": "colt, pony, racehorse, stallion, equine, mare, foal, palomino, mustang, clydesdale, bronc, bronco",
    "sheep": "lamb, ram, goat, ewe",
    "cow": "cattle, ox, calf, holstein, heifer, buffalo, bull, zebu, bison",
    "elephant": "",
    "bear": "panda",
    "zebra": "",
    "giraffe": "",
    "backpack": "knapsack",
    "umbrella": "",
    "handbag": "wallet, purse, briefcase",
    "tie": "bow, bow tie",
    "suitcase": "suit case, luggage",
    "frisbee": "",
    "skis": "ski",
    "snowboard": "",
    "sports ball": "ball",
    "kite": "",
    "baseball bat": "",
    "baseball glove": "",
    "skateboard": "",
    "surfboard": "longboard, skimboard, shortboard, wakeboard",
    "tennis racket": "racket",
    "bottle": "",
    "wine glass": "",
    "cup": "",
    "fork": "",
    "knife": "pocketknife, knive",
    "spoon": "",
    "bowl": "container",
    "banana": "",
    "apple": "",
    "sandwich": "burger, sub, cheeseburger, hamburger",
    "orange": "",
    "broccoli": "",
    "carrot": "",
    "hot dog": "",
    "pizza": "",
    "donut": "doughnut, bagel",
    "cake": "cheesecake, cupcake, shortcake, coffeecake, pancake",
    "chair": "seat, stool",
    "couch": "sofa, recliner, futon, loveseat, settee, chesterfield",
    "potted plant": "houseplant",
    "bed": "",
    "dining table": "table, desk",
    "toilet": "urinal, commode, lavatory, potty",
    "tv": "monitor, televison, television",
    "laptop": "computer, notebook, netbook, lenovo, macbook, laptop computer",
    "mouse": "",
    "remote": "",
    "keyboard": "",
    "cell phone": "mobile phone, phone, cellphone, telephone, phon, smartphone, iphone",
    "microwave": "",
    "oven": "stovetop, stove",
    "toaster": "",
    "sink": "",
    "refrigerator": "fridge, freezer",
    "book": "",
    "clock": "",
    "vase": "",
    "scissors": "",
    "teddy bear": "teddybear",
    "hair drier": "hairdryer",
    "toothbrush": "",
}
# Two words that are read as one: another word, or nothing.
PAIRS = {"bow tie": "tie", "toilet seat": "toilet", "passenger jet": "jet", "passenger train": "train"}
PAIRS |= dict.fromkeys(("home plate", "train track"), "")
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
PAIRS |= {f"{age} {animal}": animal for age in ("baby", "adult") for animal in ANIMALS}  # no person: "baby elephant"
PLURALS = {"people": "person", "children": "child", "grandchildren": "grandchild", "mice": "mouse", "geese": "goose", "oxen": "ox"}
PLURALS |= {"knives": "knife", "pocketknives": "pocketknife", "calves": "calf", "thieves": "thief", "wolves": "wolf", "loaves": "loaf"}
PLURALS |= {"leaves": "leaf", "shelves": "shelf", "scarves": "scarf", "feet": "foot", "teeth": "tooth"}
UNCHANGED = {"bus", "minibus", "airbus", "skis", "scissors", "tennis", "shears", "canvas", "gas", "octopus", "cactus", "walrus"}
IN_E = {"canoe", "shoe", "toe", "tie", "necktie", "pie", "magpie", "collie", "doggie", "cookie", "brownie", "movie", "hoodie", "zombie"}


def vocabulary(names: Iterable[str]) -> dict[tuple[str, ...], str]:
    """Words -> object, for a data set whose objects have these names: with COCO's synonyms where all of them are COCO's. The object ""
    is none."""
    names = list(dict.fromkeys(name.lower() for name in names))
    if not set(names) <= set(COCO):
        return {_words(name): name for name in names}
    found = {_words(word): name for name, others in COCO.items() for word in (name, *others.split(", ")) if word}
    return found | {_words(pair): found.get(_words(word), "") for pair, word in PAIRS.items()}


def mentioned(caption: str, words_of: Mapping[tuple[str, ...], str]) -> list[str]:
    """The objects that a caption mentions, each as often as it does, in its order; of names that contain each other the longest."""
    words = _words(caption)
    longest = max(map(len, words_of), default=0)
    found: list[tuple[str, ...]] = []
    start = 0
    while start < len(words):
        sizes = [size for size in range(longest, 0, -1) if words[start : start + size] in words_of]
        if sizes:
            found.append(words[start : start + sizes[0]])
        start += sizes[0] if sizes else 1
    objects = [words_of[each] for each in found]
    if {("toilet",), ("toilet", "seat")}.intersection(found):  # "the seat of the toilet" is no chair
        objects = [name for name, each in zip(objects, found, strict=True) if each != ("seat",)]
    return [name for name in objects if name]


def _words(text: str) -> tuple[str, ...]:
    plain = re.sub(r"'(?:s|re|ve|ll|d|m)\b|n't\b", " ", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    return tuple(map(_singular, re.findall(r"\w+(?:[-./']\w+)*", plain)))


@cache
def _singular(word: str) -> str:
    if word in PLURALS:
        return PLURALS[word]
    if word in UNCHANGED or word.endswith("ss"):
        return word
    if word.endswith("men"):
        return word[:-3] + "man"
    if word[:-1] in IN_E:
        return word.removesuffix("s")
    if re.search(r"(?:ch|sh|x|ss|o|bus)es$", word):
        return word[:-2]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and len(word) > 2 else word


def hallucinated(mentions: Sequence[str], there: Iterable[str]) -> list[str]:
    known = set(there)
    return [name for name in mentions if name not in known]
