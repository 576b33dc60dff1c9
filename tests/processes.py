"""Commands and ranks in processes forked from one that has imported the libraries, which saves each of them the seconds of importing.

That process has done nothing else: what is forked from it finds what a fresh interpreter finds, and none of what tests have patched.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable, Sequence
from contextlib import chdir
from multiprocessing import forkserver, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.multiprocessing as mp

ROOT = Path(__file__).parents[1]
OURS = ("data", "models", "recipes", "eval", "tests")
METHOD = "forkserver"
IMPORTED = ["recipes.train.loop", "recipes.clip", "eval.run", "eval.tasks.probe", "recipes.tools.chat", "torch._dynamo"]


def ready() -> None:
    """Start the process from which others are forked, if there is none yet."""
    get_context(METHOD).set_forkserver_preload(IMPORTED)
    with chdir(ROOT):  # it imports from where it starts
        forkserver.ensure_running()


def command(*words: str, typed: str = "") -> CompletedProcess[str]:
    """`python -m WORDS` to its end, with `typed` as its input."""
    return commands(ROOT, words, typed=typed)


def commands(root: Path, *several: tuple[str, ...], typed: str = "") -> CompletedProcess[str]:
    """Commands of the checkout in `root`, one after another in one process, up to the first that fails."""
    with TemporaryDirectory() as room:
        Path(room, "0").write_text(typed)
        process = start(*several, room=room, root=root)
        try:
            process.join()
        finally:
            process.kill()
        out, errors = (Path(room, name).read_text() for name in "12")
    return CompletedProcess(several, process.exitcode or 0, out, errors)


def start(*several: tuple[str, ...], room: str | Path, root: Path = ROOT) -> BaseProcess:
    """The same without waiting. The folder `room` takes the output in the files 1 and 2, and may have the input in 0."""
    ready()
    process = get_context(METHOD).Process(target=_run, args=(several, str(room), root))
    process.start()
    return process


def _run(several: Sequence[tuple[str, ...]], room: str, root: Path) -> None:
    for number, mode in enumerate((os.O_RDONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)):
        os.dup2(os.open(f"{room}/{number}", mode), number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, closefd=False) for number, mode in enumerate("rww"))
    if root != ROOT:
        for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
            del sys.modules[name]
        os.chdir(root)
        sys.path.insert(0, str(root))
    for module, *arguments in several:
        if status := execute(module, arguments):
            sys.exit(status)


def execute(module: str, arguments: Sequence[str]) -> Any:
    """`python -m MODULE ARGUMENTS` in this process. Returns the exit status, or the sentence in its place."""
    torch.set_num_threads(1)
    sys.argv = [module, *arguments]
    for name in (module, f"{module}.__main__"):
        sys.modules.pop(name, None)  # it is executed anew
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code
    return 0


def on_ranks(work: Callable[..., None], *arguments: Any, world: int = 2) -> None:
    """`work(rank, *arguments)` in several processes at once. Raises what one of them raises."""
    ready()
    mp.start_processes(work, args=arguments, nprocs=world, start_method=METHOD)  # type: ignore[attr-defined]
