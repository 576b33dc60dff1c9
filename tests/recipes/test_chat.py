"""The talk about a picture: turns are remembered, input ends as it likes, and what cannot be read is refused in words."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import models
from models.lm import LM, LMConfig
from models.shared.chat import SAMPLED, Reply, Turn
from models.shared.generate import GREEDY, Decoding
from models.shared.prefix import SOFT
from models.shared.text import BPETokenizer
from recipes.tools import chat as page
from recipes.tools.chat import Conversation, paths, read_image, talk
from tests.models.test_minigpt4 import LANGUAGE, build
from tests.processes import command


@pytest.fixture(scope="module")
def words() -> BPETokenizer:
    return BPETokenizer.train(["a small red star and a large blue circle", "how many objects are there?"], 320)


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(50, 70, 3), dtype=np.uint8)


def test_every_turn_is_read_again_and_the_picture_is_seen_once(
    words: BPETokenizer, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(words, language=replace(LANGUAGE, context=2048))
    seen, read, go_on = [], [], model.go_on
    model.to_language.register_forward_hook(lambda *_: seen.append(1))
    monkeypatch.setattr(model, "go_on", lambda rows, soft, **how: read.append(rows[0]) or go_on(rows, soft, **how))
    conversation = Conversation(model, picture)
    asked = ["what do you see?", "how many?", "what do you see?"]
    replies = [conversation.ask(request) for request in asked]
    assert len(seen) == 1
    assert conversation.turns == [Turn(request, reply.text) for request, reply in zip(asked, replies, strict=True)]
    for number, request in enumerate(asked):
        assert read[number] == model.template.before_reply(conversation.turns[:number], request)
        assert [replies[number]] == model.reply([picture], [request], before=[conversation.turns[:number]])
    assert len(read[0]) < len(read[1]) < len(read[2])


def test_the_first_turns_are_forgotten_when_there_is_no_more_room(words: BPETokenizer, picture: np.ndarray, monkeypatch: Any) -> None:
    model = build(words)
    asked: list[list[int]] = []

    def go_on(rows: Any, soft: Any, **_: Any) -> list[Reply]:
        asked.extend(rows)
        return [Reply("a red star", True)]

    monkeypatch.setattr(model, "go_on", go_on)
    conversation = Conversation(model, picture)
    assert conversation.room == 256 - 48
    for _ in range(12):
        conversation.ask("how many objects are there?")
    assert 1 < len(conversation.turns) < 12
    assert max(map(len, asked)) <= conversation.room < max(map(len, asked)) + len(asked[0])
    assert all(row.count(-1) == 4 and row[0] == words.start for row in asked)  # the picture stays


def test_a_talk_ends_with_an_empty_line_or_the_input(words: BPETokenizer, picture: np.ndarray, monkeypatch: Any) -> None:
    model = build(words)
    replies = iter([Reply("a star", True), Reply("star star star", False), Reply("yes", True)])
    monkeypatch.setattr(model, "go_on", lambda rows, soft, **_: [next(replies)])
    out = io.StringIO()
    talk(Conversation(model, picture), ["what?\n", "more\n", "\n", "never asked\n"], out)
    assert out.getvalue() == "a star\nstar star star ...\n"
    talk(Conversation(model, picture), ["is it?"], out)
    assert out.getvalue().endswith("\nyes\n")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pictures_that_cannot_be_read_are_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing.png: no such picture; give the path"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(FileNotFoundError, match="no such picture"):
        read_image(tmp_path)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"text.png: undecodable image; expected a JPEG, PNG or WebP"):
        read_image(tmp_path / "text.png")
    Image.new("1", (20_000, 6_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"bomb.png: image too large; expected .* at most 100,000,000 pixels"):
        read_image(tmp_path / "bomb.png")
    monkeypatch.setattr(page, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match=r"text.png: 13 bytes; expected"):
        read_image(tmp_path / "text.png")
    Image.new("L", (3, 2), 7).save(tmp_path / "grey.webp", lossless=True)
    monkeypatch.setattr(page, "MAX_BYTES", 1 << 20)
    assert read_image(tmp_path / "grey.webp").shape == (2, 3, 3)


def test_talks_are_sampled_unless_told_otherwise() -> None:
    asked: list[Decoding] = []

    class Fake:
        def ask(self, request: str, *, how: Decoding) -> Reply:
            asked.append(how)
            return Reply(request, ended=True)

    conversation: Any = Fake()
    talk(conversation, ["what?"], io.StringIO())
    talk(conversation, ["what?"], io.StringIO(), how=GREEDY)
    assert asked == [SAMPLED, GREEDY]


def test_on_the_terminal(words: BPETokenizer, picture: np.ndarray, tmp_path: Path) -> None:
    model = build(words)
    models.save(model, tmp_path / "run")
    Image.fromarray(picture).save(tmp_path / "picture.png")
    options = ["--device", "cpu", "--temperature", "0"]  # what is sampled from random weights depends on their last bits
    asked = [str(tmp_path / "run"), str(tmp_path / "picture.png"), *options]
    done = command("recipes.tools.chat", *asked, typed="what do you see?\nhow many?")
    assert done.returncode == 0, done.stderr
    conversation = Conversation(model, picture)
    expected = [conversation.ask(request) for request in ("what do you see?", "how many?")]
    assert done.stdout == "".join(f"{reply.text if reply.ended else reply.text + ' ...'}\n" for reply in expected)


def test_what_cannot_talk_or_be_talked_about_is_an_error_in_one_line(
    words: BPETokenizer, picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(picture).save(tmp_path / "picture.png")
    monkeypatch.setattr("sys.argv", ["chat", str(tmp_path / "run"), str(tmp_path / "picture.png"), "--device", "cpu"])
    with pytest.raises(SystemExit, match="has no model"):
        page.main()
    models.save(LM(LMConfig(language=LANGUAGE, vocab_size=words.vocab_size), words), tmp_path / "run")
    with pytest.raises(SystemExit, match=r"run holds LM, which does not reply; a LLaVA does: `make chat-llava`"):
        page.main()
    monkeypatch.setattr("sys.argv", ["chat", str(tmp_path / "run"), str(tmp_path / "nothing.png")])
    with pytest.raises(SystemExit, match=r"error: .*nothing.png: no such picture"):
        page.main()


def test_several_pictures_stand_before_the_first_request(words: BPETokenizer, picture: np.ndarray, tmp_path: Path) -> None:
    model = build(words, language=replace(LANGUAGE, context=2048))
    other = 255 - picture
    conversation = Conversation(model, picture, other)
    replies = [conversation.ask(request) for request in ("what do you see?", "how many?")]
    assert replies[:1] == model.reply([[picture, other]], ["what do you see?"])
    assert replies[1:] == model.reply([[picture, other]], ["how many?"], before=[conversation.turns[:1]])
    prompt = model.template.before_reply([], "what?", images=2)
    assert prompt.count(SOFT) == 2 * model.places
    first, second = prompt.index(SOFT), len(prompt) - 1 - prompt[::-1].index(SOFT)
    between = prompt[first + model.places : second - model.places + 1]
    assert words.decode(between) == "</img> <img>"
    assert torch.equal(conversation.vectors, model.look([picture, other]))
    assert not torch.equal(conversation.vectors, model.look([other, picture]))


def test_rows_with_other_numbers_of_pictures_are_answered_together(words: BPETokenizer, picture: np.ndarray) -> None:
    model, asked = build(words), ["what do you see?", "how many?", "what?"]
    shown: list[Any] = [[picture, 255 - picture], [], picture]
    assert model.reply(shown, asked) == [model.reply([some], [ask])[0] for some, ask in zip(shown, asked, strict=True)]
    assert SOFT not in model.template.before_reply([], "what?", images=0)


def test_several_paths_are_separated_by_commas(tmp_path: Path) -> None:
    comma = tmp_path / "a,b.png"
    comma.touch()
    assert paths(str(comma)) == [comma]
    assert paths("a.png,b c.png") == [Path("a.png"), Path("b c.png")]
