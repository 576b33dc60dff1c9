"""Write `showcase.json`: a few images with all of a model's outputs, for the report's image browser.

    {"schema": 3, "split": "test", "adapters": {"caption": ..., "answers": ..., ...},
     "items": [{"key": ..., "image": <data URI>, "truth": [captions; the first is the prompt for "drawing"],
                "caption": [[piece of text, true | false | null], ...],
                "score": CIDEr-D of the caption, where the truth is unknown,
                "answers": [{"question": ..., "truth": ..., "said": ..., "right": true | false}, ...],
                "ranked": [{"text": ..., "score": ..., "correct": true | false}, ...],    best first
                "because": [{"image": <data URI>, "text": ..., "share": ...}, ...],       pairs that explain the first rank
                "drawing": <data URI>,
                "unmasked": [<data URI>, ...],    masked image, reconstruction with the caption, reconstruction without it
                "look": {"shares": [[...], ...], "area": [left, top, right, bottom]}}]}    attention over the patches of a part of the image

The images depend only on the data, so they are the same for all models. Outputs that a model cannot produce are left out.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from PIL import Image

from data.sample import Sample
from eval.adapters.attention import Look, look
from eval.adapters.scorers import Subject
from eval.base import schemas
from eval.base.capabilities import Answerer, Captioner, Drawer, Explains, Scorer, Unmasks
from eval.base.task import Task
from eval.harness.source import Source, spread
from eval.scenes.mistakes import marked
from eval.scenes.oracle import has_truth

PICTURES = 24
ASKING = ("captioning", "vqa", "retrieval")  # tasks whose samples are preferred
QUESTIONS = 4
RANKED = 3
REASONS = 3
CANDIDATES = 64  # texts to rank, few enough for models that score every pair
LARGEST = 160  # pixels; larger images are scaled down

Json = dict[str, Any]


def showcase(subject: Subject, tasks: Sequence[Task], source: Source, only: Collection[str] | None = None) -> Json:
    """The subject's captions, answers, rankings, drawings and reconstructions for images of the primary split. `only` restricts them to
    the outputs of these tasks."""

    def asked(task: str) -> bool:
        return only is None or task in only

    by_name = {task.name: task for task in reversed(tasks) if task.split == source.primary}
    samples = pictured(list(by_name.values()), source)
    items: list[Json] = [{"key": s.key, "image": data_uri(s.image), "truth": list(s.captions) or [str(s.label or "")]} for s in samples]
    found: Json = {"schema": schemas.SHOWCASE, "split": source.primary, "adapters": {}, "items": items}
    if (able := subject.able(Captioner)) and asked("captioning"):
        found["adapters"]["caption"] = able[0].adapter
        _add(items, "caption", captions(able[0], samples))
        if "captioning" in by_name and not has_truth(samples):
            _score(items, by_name["captioning"])
    if "vqa" in by_name and asked("vqa") and (able := subject.able(Answerer)):
        found["adapters"]["answers"] = able[0].adapter
        _add(items, "answers", answers(able[0], by_name["vqa"], samples))
    texts = candidates(by_name, samples)
    if texts and asked("retrieval" if "retrieval" in by_name else "zeroshot") and (able := subject.able(Scorer, gallery=True)):
        found["adapters"]["ranked"] = f"{able[0].adapter}, among {len(texts)} texts"
        _add(items, "ranked", ranked(able[0], texts, samples, by_name))
        if isinstance(subject.model, Explains):
            found["adapters"]["because"] = "pairs that it has seen, by their share of the score"
            _add(items, "because", because(subject.model, samples, [item["ranked"][0]["text"] for item in items]))
    if (able := subject.able(Drawer)) and asked("drawing") and all(sample.captions for sample in samples):
        found["adapters"]["drawing"] = able[0].adapter
        _add(items, "drawing", [data_uri(drawing) for drawing in able[0].drawings([sample.captions[0] for sample in samples])])
    if isinstance(subject.model, Unmasks) and only is None and all(sample.captions for sample in samples):
        found["adapters"]["unmasked"] = "reconstruction"
        _add(items, "unmasked", unmasked(subject.model, samples))
    if seen := looks(subject.model, samples):
        found["adapters"]["look"] = seen[0].kind
        _add(items, "look", [_shares(each) for each in seen])
    return found


def pictured(tasks: Sequence[Task], source: Source) -> list[Sample]:
    """Evenly spaced samples among those used by the most tasks."""
    samples = source.samples(source.primary)
    chosen = [task for task in tasks if task.name in ASKING] or tasks
    asked = Counter(key for task in chosen for key in {sample.key for sample in task.samples})
    most = max(asked.values(), default=0)
    return spread([sample for sample in samples if asked[sample.key] == most], PICTURES)


def captions(captioner: Captioner, samples: Sequence[Sample]) -> list[Any]:
    """Captions in pieces, marked as true or false if the ground truth is known."""
    found = captioner.captions([sample.image for sample in samples])
    truthful = has_truth(samples)
    return [marked(text, sample) if truthful else [(text, None)] for text, sample in zip(found, samples, strict=True)]


def _score(items: Sequence[Json], task: Any) -> None:
    """Add the CIDEr-D of the captions of samples that the task `captioning` has."""
    row_of = {sample.key: row for row, sample in enumerate(task.samples)}
    having = [item for item in items if item["key"] in row_of]
    records = task.corpus.score(["".join(text for text, _ in item["caption"]) for item in having], [row_of[item["key"]] for item in having])
    for item, record in zip(having, records, strict=True):
        if "CIDEr-D" in record:
            item["score"] = round(record["CIDEr-D"], 4)


def answers(answerer: Answerer, task: Any, samples: Sequence[Sample]) -> list[Any]:
    """Answers to some questions of the task `vqa` about each image, scored as in that task."""
    row_of = {sample.key: row for row, sample in enumerate(task.samples)}
    rows = [row_of[sample.key] for sample in samples if sample.key in row_of]
    asked = dict(zip(rows, task.ask(answerer, [sample.image for sample in task.samples], rows), strict=True))
    return [[_answer(record) for record in spread(asked.get(row_of.get(sample.key, -1), []), QUESTIONS)] for sample in samples]


def candidates(by_name: dict[str, Any], samples: Sequence[Sample]) -> list[str]:
    """Texts to rank: the first captions of the shown and of other images or, without captions, the class prompts."""
    if "retrieval" in by_name:
        own = [sample.captions[0] for sample in samples if sample.captions]
        rest = [sample.captions[0] for sample in by_name["retrieval"].samples]
    elif "zeroshot" in by_name:
        own = list(_class_texts(by_name["zeroshot"], samples).values())
        rest = [prompts[0] for prompts in by_name["zeroshot"].prompts]
    else:
        return []
    own = list(dict.fromkeys(own))
    return own + spread([text for text in dict.fromkeys(rest) if text not in own], max(0, CANDIDATES - len(own)))


def ranked(scorer: Scorer, texts: Sequence[str], samples: Sequence[Sample], by_name: dict[str, Any]) -> list[Any]:
    """The best-scoring texts for each image, and whether they belong to it."""
    classes = {} if "retrieval" in by_name else _class_texts(by_name["zeroshot"], samples)
    scores = scorer.matrix([sample.image for sample in samples], texts)
    found = []
    for sample, row in zip(samples, scores, strict=True):
        own = {*sample.captions, classes.get(sample.key)}
        first = np.argsort(-row, kind="stable")[:RANKED].tolist()
        found.append([{"text": texts[i], "score": round(float(row[i]), 4), "correct": texts[i] in own} for i in first])
    return found


def unmasked(model: Unmasks, samples: Sequence[Sample]) -> list[Any]:
    """Each image with parts masked, and its reconstructions with the first caption and without it."""
    images = [sample.image for sample in samples]
    helped = model.unmask(images, [sample.captions[0] for sample in samples])
    alone = model.unmask(images, [""] * len(images))
    return [[data_uri(each) for each in (hidden, filled, guessed)] for (hidden, filled), (_, guessed) in zip(helped, alone, strict=True)]


def because(model: Explains, samples: Sequence[Sample], texts: Sequence[str]) -> list[Any]:
    """The pairs that contribute most to a text's score; pairs without a stored image are left out."""
    found = model.explain([sample.image for sample in samples], texts, most=REASONS)
    return [
        [{"image": data_uri(each.picture), "text": each.text, "share": round(each.share, 4)} for each in reasons if each.picture.size]
        for reasons in found
    ]


def looks(model: Any, samples: Sequence[Sample]) -> list[Look]:
    """Where the model looks in each image; [] if it does not show that."""
    first = [look(model, sample.image) for sample in samples[:1]]
    return [*first, *(look(model, sample.image) for sample in samples[1:])] if first and first[0].shares is not None else []


def data_uri(image: np.ndarray) -> str:
    """Encode an image as a data URI: small ones as PNG, large ones scaled down as JPEG."""
    picture, buffer = Image.fromarray(image), io.BytesIO()
    if max(picture.size) <= LARGEST // 2:
        picture.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        picture.thumbnail((LARGEST, LARGEST))
        picture.save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def _class_texts(task: Any, samples: Sequence[Sample]) -> dict[str, str]:
    """Sample key -> first prompt of its class, for samples with a class."""
    keys = {sample.key for sample in samples}
    named = [(sample.key, truth) for sample, truth in zip(task.samples, task.truths, strict=True) if sample.key in keys]
    return {key: task.templates[0].format_map({name: value.replace("_", " ") for name, value in truth.items()}) for key, truth in named}


def _shares(seen: Look) -> Json | None:
    if seen.shares is None:
        return None
    return {"shares": seen.shares.astype(float).round(5).tolist(), "area": [round(edge, 4) for edge in seen.area]}


def _answer(record: Json) -> Json:
    truth = record["truth"]
    usual = Counter(truth).most_common(1)[0][0] if isinstance(truth, list) else truth
    return {"question": record["question"], "truth": usual, "said": record["said"], "right": record["accuracy"] >= 0.5}


def _add(items: Sequence[Json], name: str, values: Sequence[Any]) -> None:
    for item, value in zip(items, values, strict=True):
        item[name] = value
