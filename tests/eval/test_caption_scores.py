"""Caption metrics against pycocoevalcap's own pipeline, COCO's files, and bad input."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from eval import EvalError
from eval.captions import coco, java, tokens
from eval.captions.__main__ import main
from eval.captions.scores import Corpus, whole

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no `java` command here")


@pytest.fixture(autouse=True)
def without_java() -> None:
    """These tests have it where it is there."""


WORDS = """
    a the an red black blue star man men woman dog's dogs' aren't can't it's they're i've he'd we'll i'm cannot gonna o'clock rock 'n'
    naïve café über 日本 t-shirt two-year-old mid-air 3 10 2nd 1,000 5.5 10:30 1/2 50% $5 £3 ½ Mr. Dr. U.S. p.m. etc. and/or black/white
    b&w 4x4 + @ # * (left) [x] "no" 'yes' runs, jumps; sits: ends. really? wow! ... -- - — “quoted” … 😀 ♥
    """
CURLY = ["\N{EN DASH}", "it\N{RIGHT SINGLE QUOTATION MARK}s"]


def sentences(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        words = rng.choices([*WORDS.split(), *CURLY], k=rng.choice((0, 1, 3, 6, 9, 12)))
        found.append(rng.choice((" ", "  ")).join(words) + rng.choice(("", ".", " .", "!", "?!", "...")))
    return found


def caption_sets(count: int, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Captions with one to five references each; some captions are a reference, or one with a word exchanged, or empty."""
    rng, texts = random.Random(seed), iter(sentences(6 * count, seed))
    references = [[next(texts) for _ in range(rng.randint(1, 5))] for _ in range(count)]
    captions = []
    for given in references:
        words = rng.choice(given).split()
        if words and rng.random() < 0.6:
            words[rng.randrange(len(words))] = rng.choice(WORDS.split())
        captions.append(rng.choice((" ".join(words), " ".join(words), next(texts), "")))
    return captions, references


def theirs(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """pycocoevalcap from raw text to scores: of the corpus, and of each caption."""
    split = PTBTokenizer()
    truth = split.tokenize({i: [{"caption": text} for text in given] for i, given in enumerate(references)})
    found = split.tokenize({i: [{"caption": text}] for i, text in enumerate(captions)})
    with contextlib.redirect_stdout(io.StringIO()):
        (bleu, bleus), (rouge, rouges), (cider, ciders) = (scorer.compute_score(truth, found) for scorer in (Bleu(4), Rouge(), Cider()))
    names = [f"BLEU-{n}" for n in (1, 2, 3, 4)]
    corpus = dict(zip(names, bleu, strict=True)) | {"ROUGE-L": rouge, "CIDEr-D": cider}
    return corpus, dict(zip(names, bleus, strict=True)) | {"ROUGE-L": list(rouges), "CIDEr-D": list(ciders)}


@pytest.fixture
def no_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dictionaries take long to load; it has tests of its own below."""
    monkeypatch.setattr(java, "has_java", lambda: False)


# ------------------------------------------------------------------------------------------------------- metrics


@needs_java
@pytest.mark.usefixtures("no_meteor")
def test_scores_equal_pycocoevalcap_on_600_caption_sets() -> None:
    captions, references = caption_sets(600)
    expected, expected_each = theirs(captions, references)
    records = Corpus(references).score(captions)
    for name in expected:
        assert [record[name] for record in records] == pytest.approx(expected_each[name], rel=1e-9, abs=1e-12), name
        statistic = whole(name)
        value = statistic(records) if statistic else sum(record[name] for record in records) / len(records)
        assert value == pytest.approx(expected[name], rel=1e-9), name
        assert value > 0.05


@pytest.mark.usefixtures("no_meteor")
def test_document_frequencies_are_of_all_pictures_whichever_are_asked_about() -> None:
    captions, references = caption_sets(60, seed=1)
    corpus = Corpus(references)
    records = corpus.score(captions)
    rows = [40, 3, 17]
    assert corpus.score([captions[row] for row in rows], rows) == [records[row] for row in rows]
    alone = Corpus([references[row] for row in rows]).score([captions[row] for row in rows])
    assert [each["CIDEr-D"] for each in alone] != [records[row]["CIDEr-D"] for row in rows]


@pytest.mark.usefixtures("no_meteor")
def test_known_values() -> None:
    """ "the the ..." is the example of Papineni et al. 2002, section 2.1: modified unigram precision 2/7."""
    references = [["the cat is on the mat", "there is a cat on the mat"], ["a dog", "a dog"]]
    first, second = Corpus(references).score(["The the the the the the the.", "a dog"])
    assert first["BLEU-1"] == pytest.approx(2 / 7)
    assert first["BLEU-2"] == pytest.approx(0, abs=1e-6)
    assert second["BLEU-2"] == pytest.approx(1)
    assert second["ROUGE-L"] == 1
    # No 3-gram and no 4-gram, so half of CIDEr's ten points.
    assert second["CIDEr-D"] == pytest.approx(5)


@pytest.mark.parametrize(
    ("references", "captions", "message"),
    [
        ("a dog", ["a dog"], r"references: expected a list of lists of strings"),
        (
            ["a dog", "a cat"],
            ["a dog", "a cat"],
            r"references\[0\]: expected a list of strings, all.*found 'a dog'",
        ),
        ([["a dog"], []], ["a dog", "a cat"], r"references\[1\]: expected at least one reference"),
        ([["a dog"], [None]], ["a dog", "a cat"], r"references\[1\]\[0\]: expected a string, found None"),
        ([["a dog"], ["a cat"]], "a dog", r"captions: expected a list of strings, one for each picture; found 'a dog'"),
        ([["a dog"], ["a cat"]], [["a dog"], ["a cat"]], r"captions\[0\]: expected a string, found \['a dog'\]"),
        ([["a dog"], ["a cat"]], ["a dog"], r"found 1 captions for 2 pictures"),
    ],
)
def test_malformed_input_raises(references: Any, captions: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Corpus(references).score(captions)


# Answers of meteor-1.5.jar (-stdio -l en -norm) to SCORE and EVAL about these four captions:
#   the dog ran / a big red dog is running on the the snow            -> a large red dog runs in the snow
#   a dog / (empty);   a dog -> a dog;   the man rides a bike -> a man is riding his bicycle
STATISTICS = [
    [10, 8, 5, 3, 3, 3, 2, 2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 2, 7, 8],
    [0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [2, 2, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 2],
]


def test_a_caption_that_is_its_reference_has_meteor_one() -> None:
    assert java.meteor_score([STATISTICS[2]]) == pytest.approx(1)
    assert java.meteor_score([STATISTICS[1]]) == 0


@needs_java
@pytest.mark.slow
def test_meteor_of_a_corpus_equals_the_program() -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    captions, references = caption_sets(300, seed=2)
    texts, truth = tokens.tokenise(captions), [tokens.tokenise(given) for given in references]
    expected, each = Meteor().compute_score(dict(enumerate(truth)), {i: [text] for i, text in enumerate(texts)})
    records = Corpus(references).score(captions)
    assert [record["METEOR"] for record in records] == pytest.approx(each, abs=1e-12)
    statistic = whole("METEOR")
    assert statistic is not None
    assert statistic(records) == pytest.approx(expected, abs=1e-12)
    assert expected > 0.2


def test_what_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("java"):
        assert java.why_no_meteor() == ""
    assert "get_stanford_models" in java.why_no_spice() or java.why_no_spice() in ("", java.NO_JAVA)
    monkeypatch.setattr(java, "has_java", lambda: False)
    assert "needs Java" in java.why_no_meteor()
    assert "needs Java" in java.why_no_spice()
    assert not {"METEOR", "SPICE"} & set(Corpus([["a dog"], ["a cat"]]).score(["a dog", "a cat"])[0])


def test_a_program_that_stops_is_an_error_not_a_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "java").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(EvalError, match="METEOR stopped at the caption 'a dog'"):
        java.Meteor().statistics(["a dog"], [["a cat"]])
    monkeypatch.setattr(tokens, "has_java", lambda: True)
    with pytest.raises(EvalError, match="PTBTokenizer gave 1 lines for 2 captions"):
        tokens.tokenise(["a dog", "a cat"])


ECHO = """#!/bin/sh
while read -r line; do
  sleep 0.005
  echo "$line" | sed 's/.*||| //'
done
"""


def test_processes_share_one_meteor_whoever_dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "java").write_text(ECHO)  # answers with its caption, here 23 numbers
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    meteor = java.Meteor()

    def ask(process: int) -> None:
        for i in range(20):
            assert meteor.statistics([" ".join([f"{process}{i}"] * 23)], [["a"]]) == [[float(f"{process}{i}")] * 23]

    def fork(work: Callable[[], None]) -> int:
        if child := os.fork():
            return child
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)

    def die() -> None:
        monkeypatch.setattr(meteor._process.stdout, "readline", lambda: os.kill(os.getpid(), signal.SIGKILL))
        meteor.statistics(["9 " * 23], [["a"]])

    assert os.waitpid(fork(die), 0)[1] == signal.SIGKILL  # it has asked, and nobody has read the answer
    children = [fork(partial(ask, process)) for process in (1, 2)]
    ask(3)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert fork(meteor._kill)
    meteor._process.wait(10)


# ----------------------------------------------------------------------------------------------------- tokenising


@needs_java
def test_tokens_equal_pycocoevalcap_and_are_the_same_without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = sentences(1500, seed=3)
    expected = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    with_java = tokens.tokenise(texts)
    assert with_java == [expected[i][0] for i in range(len(texts))]
    monkeypatch.setattr(tokens, "has_java", lambda: False)
    assert tokens.tokenise(texts) == with_java
    assert "Python" in tokens.tokeniser()


@pytest.mark.parametrize("java_there", [pytest.param(True, marks=needs_java), False])
def test_a_caption_keeps_its_place(java_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends a line, and whatever is empty: pycocoevalcap's own wrapper gives later captions the words of earlier ones."""
    monkeypatch.setattr(tokens, "has_java", lambda: java_there)
    texts = ["", "a\nb", "", "c\u2028d\x0be\x0cf\x85g", "h\r\ni\0j", "\ud83d k", " ", "the end.", "", ""]
    assert tokens.tokenise(texts) == ["", "a b", "", "c d e f g", "h i j", "k", "", "the end", "", ""]
    assert tokens.tokenise([]) == []


# --------------------------------------------------------------------------------------------- COCO's own files


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """In the very format of COCO's captions_val2014.json, instances_val2014.json and of its evaluation server, ids and all."""
    info = {"info": {"description": "COCO 2014 Dataset", "year": 2014}, "licenses": []}
    ids = [404464, 380932, 184613]
    images = [{"license": 1, "file_name": f"COCO_val2014_{i:012d}.jpg", "height": 480, "width": 640, "id": i} for i in ids]
    texts = [
        (404464, "A man is standing by a building."),
        (404464, "A man in a hat walks his dog past a shop"),
        (380932, "Group of people on motorcycles, waiting."),
        (184613, "A child holding a flowered umbrella and petting a yak."),
        (184613, "A boy with an umbrella touching an animal"),
    ]
    captions = [{"image_id": image_id, "id": n, "caption": text} for n, (image_id, text) in enumerate(texts)]
    box = {"segmentation": [[1.0, 2.0, 3.0, 4.0]], "area": 4.0, "iscrowd": 0, "bbox": [1.0, 2.0, 2.0, 2.0]}
    things = [(404464, 1), (380932, 1), (380932, 4), (184613, 1), (184613, 28)]
    instances = [{"image_id": image_id, "category_id": kind, "id": n} | box for n, (image_id, kind) in enumerate(things)]
    named = {1: "person", 4: "motorcycle", 6: "bus", 18: "dog", 28: "umbrella"}
    categories = [{"supercategory": "thing", "id": number, "name": name} for number, name in named.items()]
    results = [
        "black and white photo of a man with his puppy",
        "group of people are on the side of a bus",
        "A boy with an umbrella touching a cow",
    ]
    contents = {
        "annotations": info | {"images": images, "annotations": captions},
        "instances": info | {"images": images, "annotations": instances, "categories": categories},
        "results": [{"image_id": i, "caption": text} for i, text in zip(ids, results, strict=True)],
    }
    return {name: write(tmp_path / f"{name}.json", content) for name, content in contents.items()}


@needs_java
@pytest.mark.usefixtures("no_meteor")
def test_a_results_file_scores_as_pycocoevalcap_does(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotated, results = json.loads(files["annotations"].read_text()), json.loads(files["results"].read_text())
    references = [[a["caption"] for a in annotated["annotations"] if a["image_id"] == image["id"]] for image in annotated["images"]]
    expected, _ = theirs([result["caption"] for result in results], references)
    main(files["results"], files["annotations"], files["instances"], out=tmp_path / "scores.jsonl")
    printed = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines() if len(line.split()) > 2}
    assert {name: printed[name] for name in expected} == {name: f"{value:.3f}" for name, value in expected.items()}
    # Mentioned: person, dog | person, bus | person, umbrella, cow. The dog is in a reference; bus and cow are nowhere.
    assert (printed["CHAIR-i"], printed["CHAIR-s"], printed["SPICE"]) == ("0.286", "0.667", "not")
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [(line["image_id"], line["hallucinated"]) for line in lines] == [("404464", []), ("380932", ["bus"]), ("184613", ["cow"])]


@pytest.mark.usefixtures("no_meteor")
def test_images_without_a_caption_are_an_error_unless_asked_for(files: dict[str, Path]) -> None:
    write(files["results"], json.loads(files["results"].read_text())[:2])
    with pytest.raises(EvalError, match=r"1 of 3 images have no caption, the first is image_id 184613.*--subset"):
        coco.score(files["results"], files["annotations"])
    cells, records = coco.score(files["results"], files["annotations"], subset=True)
    assert len(records) == 2
    assert next(cell for cell in cells if cell["metric"] == "ROUGE-L")["n"] == 2


@pytest.mark.usefixtures("no_meteor")
def test_one_image_has_no_cider(files: dict[str, Path]) -> None:
    write(files["results"], json.loads(files["results"].read_text())[:1])
    cells, _ = coco.score(files["results"], files["annotations"], subset=True)
    cider = next(cell for cell in cells if cell["metric"] == "CIDEr-D")
    assert (cider["value"], cider["status"]) == (None, "not run")
    assert "at least two" in cider["note"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a JSON file"),
        ([], r"expected a list of \{\"image_id\""),
        ({"annotations": []}, r"expected a list of \{\"image_id\""),
        ([{"image_id": 404464}], r"expected entries \{\"image_id\": number, \"caption\": string\}"),
        ([{"image_id": 404464, "caption": ["a dog"]}], "expected entries"),
        ([{"image_id": 1, "caption": "a dog"}, {"image_id": 2, "caption": "a dog"}], "image_id 1 and 1 more are not annotated"),
        ([{"image_id": 404464, "caption": "a"}, {"image_id": 404464, "caption": "b"}], "404464 has two captions"),
    ],
)
def test_bad_files_are_named(files: dict[str, Path], content: Any, message: str) -> None:
    files["results"].write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(EvalError, match=f"results.json.*{message}"):
        coco.score(files["results"], files["annotations"])
    with pytest.raises(SystemExit, match=r"captions: .*results.json"):
        main(files["results"], files["annotations"])


@pytest.mark.usefixtures("no_meteor")
def test_instances_of_another_split_are_refused(files: dict[str, Path]) -> None:
    content = json.loads(files["instances"].read_text())
    content["annotations"] = [each | {"image_id": 7} for each in content["annotations"]]
    with pytest.raises(EvalError, match="same split"):
        coco.score(files["results"], files["annotations"], write(files["instances"], content))
