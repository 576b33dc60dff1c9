"""The Makefile hands every variable to its command as it is, whatever is in it; a stand-in for Python writes down what it gets."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes.tools.install import arguments, extra, installed_checkout

ROOT = Path(__file__).parents[1]
HARD = ["a b", "it's", 'say "so"', "semi;colon & more", "(brackets)[x]", "tab\tand  two", "*", "back\\slash"]
HARD += ["a$b", "$HOME", "${HOME}", "$(shell echo x)", "`echo x`", "$$", "a$", "50%", "a#b", "a=b:c", "~", "-", ", (", "ü"]


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment in a folder with a space, that is ready, and whose Python only writes down its arguments."""
    folder = tmp_path / "shared venv"
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    log = tmp_path / "asked"
    python.write_text(f"#!{sys.executable} -IS\nimport sys\nopen({str(log)!r}, 'a').write(ascii(sys.argv[1:]) + '\\n')\n")
    python.chmod(0o755)
    (folder / ".paragone").write_text("")
    os.utime(folder / ".paragone", (time.time() + 1000,) * 2)
    return folder


def make(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Make, as if it were not `make test` that runs it: nothing of that make is handed on."""
    own = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS")}
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, env=own | (environment or {}))


def made(venv: Path, *arguments: str, environment: dict[str, str] | None = None) -> list[list[str]]:
    """The commands that a target runs, as their arguments."""
    log = venv.parent / "asked"
    log.unlink(missing_ok=True)
    done = make(f"VENV={venv}", *arguments, environment=environment)
    assert done.returncode == 0, done.stderr
    return [ast.literal_eval(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("value", HARD)
def test_every_variable_reaches_its_command_whole(value: str, venv: Path) -> None:
    names = ("OUT", "DATA", "WEIGHTS", "SEED", "DEVICE", "PRESET", "SEEDS", "BY", "SHARE", "CLIP", "FORMAT")
    pages = ("train-clip", "claims-clip", "time-clip", "plan-clip", "export-clip")
    tools = ("filter", "filter-curve", "check-data", "frontier", "worlds", "race", "calibrate")
    where, seed, weights = ["--data", value, "--device", value], ["--seed", value], ["--weights", value]
    assert made(venv, *pages, *tools, *(f"{name}={value}" for name in names)) == [
        ["-m", "recipes.train", "clip", value, "--out", value, *where, *seed, *weights],
        ["-m", "recipes.claims", "clip", "--preset", value, *where, "--seeds", value],
        ["-m", "recipes.tools.timing", "clip", "--preset", value, *where, *seed],
        ["-m", "recipes.plan", "clip", value, *where, *seed, *weights],
        ["-m", "recipes.tools.export", value, "--format", value],
        ["-m", "recipes.filter", value, "--by", value, "--share", value, "--clip", value, "--out", value, "--device", value],
        ["-m", "recipes.filter.curve", "--preset", value, *where, "--seeds", value],
        ["-m", "data.check", value],
        ["-m", "recipes.frontier", "--preset", value, *seed, *where],
        ["-m", "data.scenes.build", "--preset", "tiny", "--out", ".data/scenes-tiny"],
        ["-m", "recipes.worlds", "--preset", value, *seed, *where],
        ["-m", "recipes.race", "--preset", value, *seed, *where],
        ["-m", "recipes.tools.calibrate", "--data", value],
    ]
    (evaluated,) = made(venv, "eval-clip", f"WEIGHTS={value}", f"TEST={value}", f"TASKS={value}", f"DATA={value}")
    assert evaluated == ["-m", "eval.run", value, "--data", value, "--device", "auto", "--tasks", value]


@pytest.mark.parametrize("value", HARD)
def test_a_variable_of_the_environment_and_one_for_a_make_within_arrive_whole_too(value: str, venv: Path) -> None:
    (checked,) = made(venv, "check-data", environment={"DATA": value})
    assert checked == ["-m", "data.check", value]
    trained, chatted = made(venv, "chat-llava", "IMAGE=a.jpg", f"OUT={value}", f"DATA={value}", f"SEED={value}")
    assert trained == ["-m", "recipes.train", "llava", "tiny", "--out", value, "--data", value, "--device", "auto", "--seed", value]
    assert chatted == ["-m", "recipes.tools.chat", value, "a.jpg", "--device", "auto"]


@pytest.mark.parametrize("page", ["a$b", "a b", "it's", "a;b"])
def test_a_pages_name_reaches_its_command_whole(page: str, venv: Path) -> None:
    assert made(venv, f"train-{page}", "DATA=x", "OUT=y")[0][:5] == ["-m", "recipes.train", page, "tiny", "--out"]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("ARGS=--out a$b", "ARGS holds a dollar sign, which the shell would expand"),
        ("EVAL_ARGS=$HOME", "EVAL_ARGS holds a dollar sign, which the shell would expand"),
        ("OUT=a\nb", "OUT holds a line break: expected one line"),
        ("VENV=/a:b", "VENV is /a:b: make cannot use a path with : in it"),
        ("VENV=/a;b", "VENV is /a;b: make cannot use a path with ; in it"),
    ],
)
def test_what_make_cannot_hand_on_is_refused_before_anything_runs(given: str, why: str, venv: Path) -> None:
    done = make(f"VENV={venv}", "train-clip", "DATA=x", given)
    assert done.returncode
    assert why in done.stderr
    assert not done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert not (venv.parent / "asked").exists()


def test_a_finished_run_in_a_folder_with_spaces_is_found(venv: Path, tmp_path: Path) -> None:
    run = tmp_path / "my runs" / "it's one"
    run.mkdir(parents=True)
    data = str(tmp_path / "my data")
    for finished in ("false", "true"):
        (run / "cost.json").write_text(f'{{\n "finished": {finished}\n}}')
        trained = [["-m", "recipes.train", "minigpt4", "tiny", "--out", str(run), "--data", data, "--device", "auto", "--seed", "0"]]
        commands = made(venv, "chat-minigpt4", f"OUT={run}", f"DATA={data}", f"IMAGE={tmp_path}/a photo.jpg")
        assert commands[:-1] == trained * (finished == "false")
        assert commands[-1] == ["-m", "recipes.tools.chat", str(run), f"{tmp_path}/a photo.jpg", "--device", "auto"]


@pytest.mark.parametrize(("data", "named"), [("/d e/my set", "-my set"), ("/d e/my set/{0..2}.tar", "-my set"), (".data/scenes-tiny", "")])
def test_a_run_is_named_after_its_data_as_it_is_written(data: str, named: str, venv: Path) -> None:
    commands = made(venv, "train-clip", f"DATA={data}")
    assert commands[-1][5] == f".runs/clip-tiny{named}-s0"


@pytest.mark.parametrize("arguments", [("train-clip", "PRESET=paper"), ("train-nothing", "PRESET=paper")])
def test_the_papers_preset_asks_for_data(arguments: tuple[str, ...], venv: Path) -> None:
    done = make(f"VENV={venv}", *arguments)
    assert done.returncode
    assert "PRESET=paper needs data of the paper's kind: name your shards with DATA=" in done.stderr
    assert "--data" in made(venv, *arguments, "DATA=mine")[-1]


def test_openmoji_is_a_data_set_by_name_and_the_usual_one_of_the_preset_real(venv: Path) -> None:
    for given, data, run in (
        (["PRESET=real"], ".data/openmoji", "lit-real-s0"),
        (["PRESET=real", "DATA=openmoji"], ".data/openmoji", "lit-real-s0"),
        (["PRESET=real", "DATA=.data/photos"], ".data/photos", "lit-real-photos-s0"),
        (["DATA=openmoji"], ".data/openmoji", "lit-tiny-openmoji-s0"),
    ):
        *before, train = made(venv, "train-lit", *given)
        assert train[train.index("--data") + 1] == data
        assert train[train.index("--out") + 1] == f".runs/{run}"
        assert before == [["-m", "data.importers", "openmoji"]] * (data == ".data/openmoji")


@pytest.mark.parametrize(("preset", "size"), [("tiny", "tiny"), ("small", "small")])
def test_the_pool_is_a_data_set_by_name(preset: str, size: str, venv: Path) -> None:
    folder = f".data/pool-{size}"
    written = ["-m", "data.scenes.pool", "--preset", size, "--out", folder]
    assert made(venv, "filter", "DATA=pool", "BY=blur", f"PRESET={preset}") == [
        written,
        ["-m", "recipes.filter", folder, "--by", "blur", "--device", "auto"],
    ]
    before, train = made(venv, "train-clip", "DATA=pool", f"PRESET={preset}")
    assert before == written
    assert train[3:7] == [preset, "--out", f".runs/clip-{preset}-pool-{size}-s0", "--data"]


def test_the_demo_gets_its_runs_and_its_extra_where_it_lacks(venv: Path) -> None:
    check, demo = made(venv, "demo", "RUNS=my runs", "DATA=it's mine", "DEVICE=cpu", "ARGS=--port 8000")
    assert check == ["-c", "import starlette, uvicorn"]
    assert demo == ["-m", "recipes.demo", "--runs", "my runs", "--data", "it's mine", "--device", "cpu", "--port", "8000"]
    python = venv / "bin" / "python"
    python.write_text(python.read_text() + "sys.exit(sys.argv[1] == '-c')\n")  # nothing can be imported
    assert made(venv, "demo", "DATA=x")[1] == ["recipes/tools/install.py", "demo"]
    assert {need.split(">")[0] for need in extra(ROOT, "demo")} == {"starlette", "uvicorn"}


def test_only_what_can_be_tuned_is(venv: Path) -> None:
    done = make(f"VENV={venv}", "tune-clip", "DATA=x")
    assert done.returncode
    assert "tune_clip.py is missing" in done.stdout
    assert made(venv, "tune-magic", "DATA=x", "OUT=a b")[-1][1:3] == ["recipes.tools.tune_magic", "a b"]


def test_a_shared_environment_stays_the_checkouts_that_has_it(tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert (
        arguments(ROOT, None) == arguments(ROOT, ROOT) == arguments(ROOT, other) == ["-e", f"{ROOT}[dev,real]"]
    )  # nobody is there any more
    other.mkdir()
    wanted = arguments(ROOT, other)
    assert "-e" not in wanted
    assert {"torch", "pytest", "gguf"} <= {need.split(">")[0] for need in wanted}
    assert installed_checkout("no such project") is None


def test_pages_of_several_pictures_are_a_data_set_of_their_own(venv: Path) -> None:
    assert made(venv, "data", "DATA=pages") == [["-m", "data.scenes.pages", "--preset", "tiny", "--out", ".data/pages-tiny"]]
    assert made(venv, "data", "DATA=pages", "PRESET=small")[0][-1] == ".data/pages-small"
    assert made(venv, "data", "DATA=several") == [["-m", "data.scenes.several", "--preset", "tiny", "--out", ".data/several-tiny"]]


def test_a_page_that_trains_on_pages_of_pictures_is_trained_and_evaluated_on_them(venv: Path) -> None:
    *_, scenes, pages, train = made(venv, "train-flamingo")
    assert [scenes[1], pages[1]] == ["data.scenes.build", "data.scenes.pages"]
    assert train[5:8] == [".runs/flamingo-tiny-s0", "--data", ".data/pages-tiny"]
    both = made(venv, "train-clip", "train-flamingo", "eval-flamingo")
    assert [command[command.index("--data") + 1] for command in both if command[1] in ("recipes.train", "eval.run")] == [
        ".data/scenes-tiny",
        *[".data/pages-tiny"] * (len([command for command in both if command[1] in ("recipes.train", "eval.run")]) - 1),
    ]
    (elsewhere,) = (command for command in made(venv, "train-flamingo", "DATA=/my set") if command[1] == "recipes.train")
    assert elsewhere[5:8] == [".runs/flamingo-tiny-my set-s0", "--data", "/my set"]
