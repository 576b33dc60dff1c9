"""The page of `make demo`: what runs say about a picture, what the server refuses, and a browser that uses it."""

from __future__ import annotations

import io
import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import models
from eval.harness.source import from_shards
from eval.report.picture import BROWSERS
from recipes.demo.__main__ import found, listening
from recipes.demo.runs import LONGEST, OTHERS, Known, Runs
from tests.eval.test_attention import build
from tests.processes import command

FEW = {"width": 32, "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def known(few: Path) -> Known:
    return Known.of(from_shards(few))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a CLIP, a CoCa and a language model, and three that are broken."""
    root = tmp_path_factory.mktemp("demo") / "my runs"
    models.save(build("clip", FEW), root / "clip-tiny-s0")
    models.save(build("coca", FEW), root / "coca-tiny-s0")
    models.save(build("lm"), root / "lm-tiny-s0")
    models.save(build("clip", FEW), root / "torn<b>")
    (root / "torn<b>" / "model.json").write_text('{"model": "clip"')
    models.save(build("clip", FEW), root / "unfinished")
    (root / "unfinished" / "model.safetensors").unlink()
    (root / "compare").mkdir()
    return root


@pytest.fixture
def runs(folder: Path, known: Known) -> Runs:
    return Runs(folder, "cpu", known)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(50, 70, 3), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------------------- what runs say


def test_every_folder_with_a_model_is_a_run(runs: Runs, tmp_path: Path) -> None:
    assert runs.names == ["clip-tiny-s0", "coca-tiny-s0", "lm-tiny-s0", "torn<b>", "unfinished"]
    assert Runs(tmp_path / "nowhere").names == []


def test_a_run_says_what_its_model_says(runs: Runs, known: Known, picture: np.ndarray) -> None:
    model: Any = models.load(runs.root / "coca-tiny-s0")
    said = runs.ask("coca-tiny-s0", picture, "a red star", "what colour is the star?")
    assert said["errors"] == []
    assert (said["model"], said["paradigm"]) == ("CoCa", "generative")
    assert said["caption"]["text"] == model.caption([picture])[0]
    others = [caption for caption in known.captions if caption != "a red star"]
    assert len(others) == min(OTHERS, len(others)) > 5
    own, *rest = model.score([picture] * (1 + len(others)), ["a red star", *others]).tolist()
    assert said["similarity"]["value"] == pytest.approx(own, abs=1e-4)
    assert (said["similarity"]["above"], said["similarity"]["others"]) == (sum(score < own for score in rest), len(others))
    assert said["similarity"]["how"] == "likelihood"
    assert said["answer"]["text"] in known.answers("what colour is the star?")
    assert (len(said["look"]["percent"]), max(said["look"]["percent"]), said["look"]["how"]) == (16, 100, "attention pooler")
    assert said["look"]["area"] == pytest.approx((1 / 7, 0, 6 / 7, 1))
    assert "drawing" not in said


def test_a_model_of_pairs_of_vectors_has_a_similarity_too(runs: Runs, picture: np.ndarray) -> None:
    model: Any = models.load(runs.root / "clip-tiny-s0")
    said = runs.ask("clip-tiny-s0", picture, "a red star")
    cosine = float(model.encode_image([picture]) @ model.encode_text(["a red star"]).T)
    assert said["similarity"]["value"] == pytest.approx(cosine, abs=1e-5)
    assert {"caption", "answer", "drawing"}.isdisjoint(said)


def test_answers_are_chosen_among_those_of_questions_that_begin_alike(known: Known) -> None:
    assert set(known.answers("is there a unicorn?")) == {"yes", "no"}
    assert {"yes", "no"}.isdisjoint(known.answers("what colour is the unicorn?"))
    assert Known().answers("what colour is it?") == ["yes", "no"]


def test_what_was_not_given_is_not_answered(runs: Runs, picture: np.ndarray) -> None:
    assert {"similarity", "answer"}.isdisjoint(runs.ask("coca-tiny-s0", picture))
    assert "caption" in runs.ask("coca-tiny-s0", picture)


def test_a_model_that_sees_nothing_says_so(runs: Runs, picture: np.ndarray) -> None:
    said = runs.ask("lm-tiny-s0", picture, "a red star", "what?")
    assert said["look"] == {"how": "sees no pictures"}
    assert said["errors"] == []


@pytest.mark.parametrize("name", ["torn<b>", "unfinished", "nothing", "../my runs/clip-tiny-s0", ""])
def test_a_broken_run_is_named_in_a_sentence(name: str, runs: Runs, picture: np.ndarray) -> None:
    said = runs.ask(name, picture, "a red star", "what?")
    (sentence,) = said["errors"]
    assert said["run"] == name
    assert name.rpartition("/")[2] in sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    assert runs.ask("clip-tiny-s0", picture)["errors"] == []  # the others go on


def test_a_model_is_loaded_when_it_is_asked_and_once(runs: Runs, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = models.load
    monkeypatch.setattr(models, "load", lambda folder, device: loaded.append(folder.name) or load(folder, device))
    assert runs.names
    assert loaded == []
    for _ in range(2):
        runs.ask("clip-tiny-s0", picture)
    assert loaded == ["clip-tiny-s0"]


class Draws(torch.nn.Module):
    """Draws, and fails at all else."""

    paradigm = "none"
    score_kind = "pairwise score"

    def draw(self, texts: Sequence[str], *, seed: int = 0) -> list[np.ndarray]:
        return [np.full((4, 4, 3), len(text), np.uint8) for text in texts]

    def caption(self, images: Sequence[np.ndarray]) -> list[str]:
        raise RuntimeError("no room\nfor words")

    def score(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> torch.Tensor:
        return torch.full((len(texts),), -torch.inf)


def test_a_part_that_fails_leaves_the_others(runs: Runs, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "load", lambda folder, device: Draws())
    said = runs.ask("clip-tiny-s0", picture, "a red star")
    assert said["drawing"]["image"].startswith("data:image/png;base64,")
    assert said["errors"] == ["look: no room for words", "similarity: the score is -inf", "caption: no room for words"]


def test_without_a_data_set_a_sentence_is_not_compared(folder: Path, picture: np.ndarray) -> None:
    said = Runs(folder).ask("clip-tiny-s0", picture, "a red star", "is it a star?")
    assert said["similarity"]["others"] == 0
    assert said["answer"]["text"] in ("yes", "no")


def test_long_and_odd_texts_are_read(runs: Runs, picture: np.ndarray) -> None:
    for text in ("x" * LONGEST, "\U0001f600 ☃\n\t", "\x00", "a " * (LONGEST // 2)):
        for name in ("clip-tiny-s0", "coca-tiny-s0"):
            assert runs.ask(name, picture, text, text)["errors"] == []


# ------------------------------------------------------------------------------------------------------------ the command


def test_the_command_refuses_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no trained run: `make train-clip`"):
        found(tmp_path, "", "cpu")
    done = command("recipes.demo", "--runs", str(folder), "--data", str(tmp_path / "none"), "--device", "cpu")
    assert done.returncode == 1
    assert "demo: " in done.stderr
    assert "Traceback" not in done.stderr


def test_only_this_machine_reaches_the_page() -> None:
    with listening(0) as place:
        assert place.getsockname()[0] == "127.0.0.1"
        place.listen()
        with pytest.raises(OSError, match=r"cannot be used .* choose another with --port"):
            listening(place.getsockname()[1])
    with pytest.raises(OSError, match="cannot be used"):
        listening(70_000)


def test_without_the_extra_the_command_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.demo.__main__ import main

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit, match=r"demo: uvicorn is missing: `pip install -e '\.\[demo\]'`"):
        main(folder, "", "cpu", 0)


# ------------------------------------------------------------------------------------------------------------- the server


@pytest.fixture
def client(runs: Runs) -> Any:
    pytest.importorskip("starlette", reason="needs the extra demo")
    from starlette.testclient import TestClient

    from recipes.demo.server import app

    return TestClient(app(runs), base_url="http://127.0.0.1", raise_server_exceptions=False)


BYTES = {"content-type": "application/octet-stream"}


def uploaded(client: Any, image: np.ndarray) -> str:
    return str(client.post("/picture", content=encoded(image), headers=BYTES).json()["name"])


def test_a_picture_is_uploaded_and_asked_about(client: Any, runs: Runs, picture: np.ndarray) -> None:
    answer = client.post("/picture", content=encoded(picture), headers=BYTES).json()
    assert (answer["width"], answer["height"]) == (70, 50)
    asked = {"run": "coca-tiny-s0", "picture": answer["name"], "sentence": " a red star\n", "question": "what?"}
    said = client.post("/ask", json=asked).json()
    expected = json.loads(json.dumps(runs.ask("coca-tiny-s0", picture, "a red star", "what?")))
    assert {key: value for key, value in said.items() if key != "seconds"} == {key: expected[key] for key in said if key != "seconds"}


def test_pictures_of_the_data_set_can_be_chosen(client: Any, runs: Runs) -> None:
    about = client.get("/runs").json()
    assert about["runs"] == runs.names
    assert len(about["pictures"]) == len(runs.known.samples) > 0
    assert about["pictures"][0]["image"].startswith("data:image/")
    said = client.post("/ask", json={"run": "clip-tiny-s0", "picture": about["pictures"][1]["name"]}).json()
    assert said["look"] == json.loads(json.dumps(runs.ask("clip-tiny-s0", runs.known.samples[1].image)["look"]))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "undecodable image: expected JPEG or PNG or WEBP"),
        (b"not a picture", "undecodable image"),
        (b"GIF89a" + b"\x00" * 40, "undecodable image"),
        (encoded(np.zeros((40, 40, 3), np.uint8))[:60], "undecodable image"),
    ],
)
def test_bad_pictures_are_refused_in_a_sentence(content: bytes, sentence: str, client: Any) -> None:
    answer = client.post("/picture", content=content, headers=BYTES)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(sentence)


def test_too_much_is_refused_before_it_is_read(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.demo import server

    monkeypatch.setattr(server, "MAX_BYTES", 1000)
    read: list[int] = []

    def more() -> Iterator[bytes]:
        for number in range(100):
            read.append(number)
            yield b"x" * 300

    answer = client.post("/picture", content=more(), headers=BYTES)
    assert answer.json() == {"error": "more than 1,000 bytes"}
    many = client.post("/ask", content=b'"' + b"x" * (1 << 17), headers={"content-type": "application/json"})
    assert many.json() == {"error": "more than 65,536 bytes"}


def test_pictures_of_too_many_pixels_are_refused(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from data import decode

    monkeypatch.setattr(decode, "MAX_PIXELS", 99)
    answer = client.post("/picture", content=encoded(np.zeros((10, 10, 3), np.uint8)), headers=BYTES)
    assert answer.json()["error"].startswith("image too large: expected JPEG or PNG or WEBP of at most 100,000,000 pixels")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("{", "the request is not JSON"),
        ("[]", "expected texts: run, picture, sentence, question"),
        ('{"run": 3}', "expected texts: run, picture, sentence, question"),
        ('{"run": "clip-tiny-s0"}', "choose a picture first"),
        ('{"run": "clip-tiny-s0", "picture": "set/99999"}', "the picture is not there any more: choose it again"),
        ('{"run": "clip-tiny-s0", "picture": "/etc/passwd"}', "the picture is not there any more: choose it again"),
        (json.dumps({"picture": "set/0", "sentence": "x" * (LONGEST + 1)}), "the sentence has 1,001 characters; at most 1,000 are read"),
        (json.dumps({"picture": "set/0", "question": "x" * (LONGEST + 1)}), "the question has 1,001 characters; at most 1,000 are read"),
    ],
)
def test_bad_requests_are_refused_in_a_sentence(body: str, sentence: str, client: Any) -> None:
    answer = client.post("/ask", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()) == (400, {"error": sentence})


def test_halves_of_characters_are_no_matter(client: Any) -> None:
    asked = '{"run": "clip-tiny-s0", "picture": "set/0", "sentence": "\\ud800"}'
    said = client.post("/ask", content=asked, headers={"content-type": "application/json"})
    assert said.json()["errors"] == []


def test_other_pages_cannot_ask(client: Any, picture: np.ndarray) -> None:
    """A page of another site can send a form's types only, and one whose name was pointed here has another host."""
    assert client.post("/picture", content=encoded(picture), headers={"content-type": "text/plain"}).status_code == 400
    assert client.post("/ask", content="{}", headers={"content-type": "text/plain"}).status_code == 400
    assert client.get("/runs", headers={"host": "example.com"}).status_code == 400
    assert client.get("/../../pyproject.toml").status_code == 404


def test_only_the_last_pictures_are_kept_and_nothing_is_written(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    names = [uploaded(client, np.full((8, 8, 3), level, np.uint8)) for level in (1, 2, 3)]
    status = [client.post("/ask", json={"run": "clip-tiny-s0", "picture": name}).status_code for name in names]
    assert status == [400, 200, 200]
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ the browser


@pytest.fixture
def address(runs: Runs) -> Iterator[str]:
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra demo")
    from recipes.demo.server import app

    server = uvicorn.Server(uvicorn.Config(app(runs), log_level="warning"))
    with listening(0) as place:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{place.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    """The page in a browser, which keeps what it asked of whom, and its errors."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(viewport={"width": 1200, "height": 900})
        opened.set_default_timeout(60_000)
        opened.asked, opened.wrong = [], []
        opened.on("request", lambda request: opened.asked.append(request.url))
        opened.on("pageerror", lambda error: opened.wrong.append(str(error)))
        opened.on("console", lambda said: opened.wrong.append(said.text) if said.type == "error" else None)
        opened.goto(address)
        yield opened
        opened.context.browser.close()


def told(page: Any, words: str) -> None:
    page.wait_for_function("words => document.getElementById('told').textContent.includes(words)", arg=words)


def answered(page: Any, runs: Runs) -> dict[str, str]:
    page.wait_for_function("count => document.querySelectorAll('.run:not(.waiting)').length === count", arg=len(runs.names))
    return {card.get_attribute("data-run"): card.inner_text() for card in page.query_selector_all(".run")}


def test_a_visitor_drops_a_picture_and_asks_all_runs(page: Any, address: str, runs: Runs, picture: np.ndarray) -> None:
    page.wait_for_selector("#set button")
    page.set_input_files("#file", {"name": "mine.png", "mimeType": "image/png", "buffer": encoded(picture)})
    told(page, "70 x 50")
    page.fill("#sentence", "a red star")
    page.fill("#question", "what colour is the star?")
    page.click("#ask")
    said = answered(page, runs)
    expected = runs.ask("coca-tiny-s0", picture, "a red star", "what colour is the star?")
    assert expected["caption"]["text"] in said["coca-tiny-s0"]
    assert f"{expected['similarity']['value']:.3f}" in said["coca-tiny-s0"]
    assert expected["answer"]["text"] in said["coca-tiny-s0"]
    assert "sees no pictures" in said["lm-tiny-s0"]
    assert "torn<b>" in said["torn<b>"]
    assert "unfinished" in said["unfinished"]
    # The map covers the central square of the picture, and is darkest where the least attention is.
    card = page.query_selector('.run[data-run="coca-tiny-s0"]')
    box, veil = (card.query_selector(what).bounding_box() for what in (".seen img", "canvas"))
    assert veil["width"] == pytest.approx(veil["height"], abs=1)
    assert veil["x"] + veil["width"] / 2 == pytest.approx(box["x"] + box["width"] / 2, abs=1)
    assert veil["width"] == pytest.approx(min(box["width"] * 5 / 7, 17 * 16), abs=2)
    alphas = "canvas => [...canvas.getContext('2d').getImageData(0, 0, 4, 4).data].filter((_, i) => i % 4 === 3)"
    dark = card.query_selector("canvas").evaluate(alphas)
    assert np.argmin(dark) == np.argmax(expected["look"]["percent"])
    page.click("#veils")
    assert not card.query_selector("canvas").is_visible()
    assert page.wrong == []
    assert all(url.startswith((address, "blob:", "data:")) for url in page.asked)  # no network


def test_a_visitor_chooses_a_picture_of_the_data_set(page: Any, runs: Runs) -> None:
    page.click("#set button:nth-child(2)")
    sample = runs.known.samples[1]
    assert page.input_value("#sentence") == sample.captions[0]
    page.click("#ask")
    assert runs.ask("coca-tiny-s0", sample.image)["caption"]["text"] in answered(page, runs)["coca-tiny-s0"]


def test_a_visitor_errs(page: Any, runs: Runs, picture: np.ndarray) -> None:
    page.wait_for_selector("#set button")
    page.click("#ask")
    told(page, "Choose a picture first.")
    page.set_input_files("#file", {"name": "letter.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    told(page, "letter.txt: undecodable image")
    page.set_input_files("#file", {"name": "mine.png", "mimeType": "image/png", "buffer": encoded(picture)})
    told(page, "70 x 50")
    page.fill("#sentence", "x" * (LONGEST + 1))
    page.click("#ask")
    told(page, "The sentence has 1001 characters; at most 1000 are read.")
    page.fill("#sentence", "   ")
    page.fill("#question", "<b>what?</b>")
    page.click("#ask")
    assert "similarity: " not in answered(page, runs)["clip-tiny-s0"]
    told(page, "Without a sentence for similarity and drawing.")
