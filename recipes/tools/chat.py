"""Chat with a trained model about an image: `python -m recipes.tools.chat .runs/llava-tiny-s0 picture.png` (= `make chat-llava`).

Every line is a request; earlier turns are remembered. An empty line, or the end of the input, ends the conversation.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TextIO

import numpy as np

import models
from data.decode import MAX_BYTES, MAX_PIXELS, Unusable, decode_image
from data.fields import require
from models.shared.chat import SAMPLED, ChatModel, Reply, Turn
from models.shared.device import resolve_device
from models.shared.generate import GREEDY, Decoding


class Conversation:
    """A conversation about images, which are encoded once. The oldest turns are dropped if it exceeds the language model's context."""

    def __init__(self, model: ChatModel, *images: np.ndarray) -> None:
        self.model, self.images, self.turns = model, len(images), list[Turn]()
        self.vectors = model.look(images)
        self.room: int = model.language.config.max_position_embeddings - model.config.context  # positions without the reply's

    def ask(self, request: str, *, how: Decoding = GREEDY) -> Reply:
        while self.turns and len(self._prompt(request)) > self.room:
            del self.turns[0]
        reply = self.model.go_on([self._prompt(request)], self.vectors, how=how)[0]
        self.turns.append(Turn(request, reply.text))
        return reply

    def _prompt(self, request: str) -> list[int]:
        return self.model.template.before_reply(self.turns, request, images=self.images)


def talk(
    conversation: Conversation, requests: Iterable[str], out: TextIO, prompt: Callable[[], None] = lambda: None, how: Decoding = SAMPLED
) -> None:
    """Reply to each line until an empty one. `prompt` is called before each is read."""
    lines = iter(requests)
    while True:
        prompt()
        request = next(lines, "").strip()
        if not request:
            return
        reply = conversation.ask(request, how=how)
        print(reply.text if reply.ended else f"{reply.text} ...", file=out, flush=True)


def paths(text: str) -> list[Path]:
    """One path, or several, separated by commas; a file's name may contain commas, too."""
    return [Path(text)] if Path(text).is_file() else [Path(part) for part in text.split(",")]


def read_image(path: Path) -> np.ndarray:
    """uint8 RGB `[height, width, 3]`. Raises FileNotFoundError, or ValueError for a picture that the data's decoder refuses."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such picture; give the path of a JPEG, PNG or WebP file, as in IMAGE=photo.jpg")
    expected = f"expected a JPEG, PNG or WebP of at most {MAX_PIXELS:,} pixels and {MAX_BYTES:,} bytes"
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes; {expected}")
    try:
        return decode_image(path.read_bytes())
    except Unusable as reason:
        raise ValueError(f"{path}: {reason}; {expected}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description="Chat with a trained model about a picture")
    parser.add_argument("run", type=Path, help="run folder of a model that replies, such as .runs/llava-tiny-s0")
    parser.add_argument("image", help="a JPEG, PNG or WebP file, or several, separated by commas")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--temperature", type=float, default=SAMPLED.temperature, help="sampling temperature; 0 always takes the most likely token"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the replies; the same seed replies the same")
    args = parser.parse_args()
    interactive = sys.stdin.isatty()
    try:
        require(0 <= args.temperature < math.inf, "--temperature", args.temperature, "0 or a number above")
        require(0 <= args.seed < 1 << 32, "--seed", args.seed, f"0 to {(1 << 32) - 1:,}")
        images = [read_image(path) for path in paths(args.image)]
        model = models.load(args.run, str(resolve_device(args.device)))
        if not isinstance(model, ChatModel):
            raise ValueError(f"{args.run} holds {type(model).__name__}, which does not reply; a LLaVA does: `make chat-llava`")
        if interactive:
            sizes = ", ".join(f"{image.shape[1]} x {image.shape[0]}" for image in images)
            print(f"{args.image}, {sizes} pixels. Ask; an empty line ends.")
        how = Decoding(temperature=args.temperature, top_p=SAMPLED.top_p, seed=args.seed) if args.temperature else GREEDY
        talk(Conversation(model, *images), sys.stdin, sys.stdout, lambda: print("> ", end="", flush=True) if interactive else None, how)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
