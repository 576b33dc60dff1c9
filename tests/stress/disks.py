"""Full and read-only disks, and files that may not grow."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from recipes.train.folder import CHECKPOINT
from tests.recipes.test_train import same_weights
from tests.stress.child import Outcome, run
from tests.stress.ground import Found, Ground, evaluate, report, reported, same_after_resuming, train_page, unlike


def limited_files(ground: Ground) -> Found:
    """What cannot be written is named in a sentence, and without the limit the work goes on to the same end."""
    size = (ground.trained("clip")[0] / CHECKPOINT).stat().st_size
    runs, evaluated = ground.compared("clip"), ground.evaluated()
    while True:
        for limit in (3000, 0, size // 3, 40, size - 1000):
            out = ground.place("limited")
            fault = _named(_with_files_of(limit, partial(train_page, ground, "clip", out)), out)
            yield f"training, files of {limit} bytes", fault or same_after_resuming(ground, "clip", out)
            out, most = ground.place("limited"), limit % 2000
            fault = _named(_with_files_of(most, partial(evaluate, out)), out)
            run(partial(evaluate, out))
            yield f"evaluation, files of {most} bytes", fault or unlike(evaluated, out)
            out, most = ground.place("limited"), limit % 4096
            yield f"report, files of {most} bytes", _named(_with_files_of(most, partial(report, runs, out)), out)


def full_and_read_only_disks(ground: Ground) -> Found:
    """As above, on small file systems in memory, which only root may mount."""
    if not mountable(ground.place("disk")):
        ground.note = "not tried: this user may not mount a file system"
        return
    trained, evaluated, runs = ground.trained("clip")[0], ground.evaluated(), ground.compared("clip")
    reports = reported(runs, ground.place("report"))
    disk = ground.place("disk")
    work: dict[str, tuple[Callable[[], object], Callable[[], str]]] = {
        "evaluation": (partial(evaluate, disk / "out"), lambda: unlike(evaluated, disk / "out")),
        "report": (partial(report, runs, disk / "out"), lambda: "" if _files(disk / "out") == reports else "another report"),
        "training": (
            partial(train_page, ground, "clip", disk / "out"),
            lambda: "" if same_weights(trained, disk / "out") else "other weights than of a training that nobody disturbed",
        ),
    }
    while True:
        for room in (4096, 0, 12288):
            for what, (attack, differs) in work.items():
                with mounted(disk):
                    with _filled(disk, room):
                        fault = _named(run(attack, 300), disk)
                    again = run(attack, 300)
                    fault = fault or ("" if again.kind == "done" else f"with room again: {again.said}") or differs()
                yield f"{what} on a disk with {room} bytes of room", fault
            for what, (attack, _) in work.items():
                with mounted(disk, "ro"):
                    outcome = run(attack, 300)
                yield f"{what} on a read-only disk", "it says nothing" if outcome.kind == "done" else _named(outcome, disk)


@contextmanager
def _filled(disk: Path, room: int) -> Iterator[None]:
    """With so many bytes of room."""
    filler = disk / "filler"
    filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - room)))
    try:
        yield
    finally:
        filler.unlink()


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _with_files_of(most: int, attack: Callable[[], object]) -> Outcome:
    """In a process that cannot write larger files: the system refuses that as it refuses to write to a full disk."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        attack()

    return run(limited, 300)


def _named(outcome: Outcome, folder: Path) -> str:
    if outcome.kind == "refused" and str(folder) not in outcome.said:
        return f"the sentence names no file of the place: {outcome.said}"
    return outcome.fault


def mountable(folder: Path) -> bool:
    """Whether this user may mount a file system."""
    try:
        with mounted(folder):
            return True
    except OSError:
        return False


@contextmanager
def mounted(folder: Path, options: str = "rw") -> Iterator[Path]:
    """A small file system in memory, with room for a run and its checkpoint. Raises OSError where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size=64m,{options}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        raise OSError(f"no file system can be mounted at {folder}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)
