"""The page's server. It listens on this machine only; pictures stay in memory, the last ones of them, and nothing is written."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

import eval.report
from data.decode import FORMATS, MAX_BYTES, MAX_PIXELS, Unusable, decode_image
from data.files import parse_json
from data.sample import sound
from eval.harness.showcase import data_uri
from recipes.demo.runs import LONGEST, Runs

HERE, REPORT = Path(__file__).parent, Path(eval.report.__file__).parent
FILES = {"/": HERE / "page.html", "/page.css": REPORT / "page.css", "/veil.js": REPORT / "veil.js", "/demo.js": HERE / "demo.js"}
KEPT = 2  # uploaded pictures
LARGEST_REQUEST = 1 << 16  # bytes, without the picture
SOURCES = "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"


class Refused(Exception):
    """Why a request is not answered, in a sentence for the page."""


def app(runs: Runs) -> Starlette:
    """The page at /, and what it asks: /runs, /picture (bytes of an image -> its name) and /ask (a run about a picture by name)."""
    pictures = {f"set/{number}": sample.image for number, sample in enumerate(runs.known.samples)}
    uploaded: OrderedDict[str, np.ndarray] = OrderedDict()

    async def listed(request: Request) -> Response:
        shown = [
            {
                "name": f"set/{number}",
                "image": data_uri(sample.image),
                "caption": next(iter(sample.captions), ""),
                "question": next((question.question for question in sample.questions), ""),
            }
            for number, sample in enumerate(runs.known.samples)
        ]
        return JSONResponse({"runs": runs.names, "data": runs.known.name, "pictures": shown, "longest": LONGEST})

    async def picture(request: Request) -> Response:
        encoded = await _body(request, MAX_BYTES, "application/octet-stream")
        try:
            image = await run_in_threadpool(decode_image, encoded)
        except Unusable as reason:
            raise Refused(f"{reason}: expected {' or '.join(FORMATS)} of at most {MAX_PIXELS:,} pixels") from None
        name = blake2b(encoded, digest_size=16).hexdigest()
        uploaded.pop(name, None)  # the same one again is the last one
        uploaded[name] = image
        while len(uploaded) > KEPT:
            uploaded.popitem(last=False)
        return JSONResponse({"name": name, "width": image.shape[1], "height": image.shape[0]})

    async def ask(request: Request) -> Response:
        asked = _request(await _body(request, LARGEST_REQUEST, "application/json"))
        image = pictures.get(asked["picture"], uploaded.get(asked["picture"]))
        if image is None:
            raise Refused("choose a picture first" if not asked["picture"] else "the picture is not there any more: choose it again")
        return JSONResponse(await run_in_threadpool(runs.ask, asked["run"], image, asked["sentence"], asked["question"]))

    def refused(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 400)

    def file(path: Path) -> Any:
        async def answer(request: Request) -> Response:
            return FileResponse(path, headers={"Content-Security-Policy": SOURCES})

        return answer

    return Starlette(
        routes=[
            *(Route(url, file(path)) for url, path in FILES.items()),
            Route("/runs", listed),
            Route("/picture", picture, methods=["POST"]),
            Route("/ask", ask, methods=["POST"]),
        ],
        exception_handlers={Refused: refused},
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],  # no other name leads here
    )


async def _body(request: Request, most: int, kind: str) -> bytes:
    """Raises Refused for a body of more than `most` bytes, or of another type than `kind`: the types that pages of other sites can send."""
    if request.headers.get("content-type") != kind:
        raise Refused(f"expected a body of type {kind}")
    found = bytearray()
    async for chunk in request.stream():
        found += chunk
        if len(found) > most:
            raise Refused(f"more than {most:,} bytes")
    return bytes(found)


def _request(encoded: bytes) -> dict[str, str]:
    """The texts "run", "picture", "sentence" and "question", the last two without blanks around them."""
    try:
        asked = parse_json(encoded.decode(), Path("request"))
    except ValueError:  # a FileError is one
        raise Refused("the request is not JSON") from None
    names = ("run", "picture", "sentence", "question")
    if not isinstance(asked, dict) or not all(isinstance(asked.get(name, ""), str) for name in names):
        raise Refused(f"expected texts: {', '.join(names)}")
    found = {name: sound(asked.get(name, "")) for name in names}
    for name in ("sentence", "question"):
        found[name] = found[name].strip()
        if len(found[name]) > LONGEST:
            raise Refused(f"the {name} has {len(found[name]):,} characters; at most {LONGEST:,} are read")
    return found
