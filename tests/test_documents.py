"""The READMEs speak of what is there: paths, names in code, make targets, modules and links; and README.md stays short."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("data", "models", "recipes", "eval", "tests")
DOCUMENTS = [ROOT / "README.md", *sorted(path for part in PARTS for path in (ROOT / part).rglob("*.md"))]
LONGEST = 9 * 1024  # bytes of README.md
# From the README to the answer in at most three files, the README and the one with the answer included.
FINDS = {
    "the sigmoid loss": ("models/siglip/objective.py", "def siglip_loss"),
    "BLIP-2's negatives for image-text matching": ("models/shared/matching.py", "def hard_negatives"),
    "how POPE is scored": ("eval/tasks/pope.py", "class POPE"),
    "where a run's data comes from": ("data/README.md", "`recipe.json` keeps the value"),
    "what chance is": ("eval/base/task.py", "def chance"),
}

document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def paths_in(text: str) -> list[str]:
    """What is written as a Python file: models/clip/model.py, model.py, tests/models/test_asif*.py."""
    return re.findall(r"(?<![\w/.*<>-])((?:[\w.*-]+/)*[\w*]+\.py)\b", text)


def links_in(text: str) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http://", "https://"))]


def found(written: str, folder: Path) -> list[Path]:
    """The files that a document in `folder` means: relative to it or to the project; a bare name also anywhere below it. Below the root
    lie an environment and data too: there only the project's folders count."""
    below = [ROOT / part for part in PARTS] if folder == ROOT else [folder]
    places = [(folder, written), (ROOT, written)] + [(place, f"**/{written}") for place in below if "/" not in written]
    return [path.resolve() for place, pattern in places for path in place.glob(pattern)]


@cache
def targets() -> str:
    """A pattern of all targets of the Makefile, % filled with the pages or with a placeholder such as <page>."""
    names = re.findall(r"^([a-z%-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    pages = [path.stem for path in (ROOT / "recipes").glob("*.py") if path.stem != "__init__"]
    filled = "(" + "|".join([*map(re.escape, pages), "<page>", "<model>", "<name>"]) + ")"
    return "|".join(re.escape(name).replace("%", filled) for name in names)


def test_there_are_documents() -> None:
    names = {str(path.relative_to(ROOT)) for path in DOCUMENTS}
    assert {"README.md", "data/README.md", "eval/README.md", "models/README.md", "recipes/README.md", "models/clip/README.md"} <= names


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= LONGEST


@document
def test_every_python_file_exists(path: Path) -> None:
    written = [name for name in paths_in(path.read_text()) if "<" not in name]
    missing = [name for name in written if not found(name, path.parent)]
    assert not missing, f"{path.relative_to(ROOT)} names {missing}"


@document
def test_every_link_leads_somewhere(path: Path) -> None:
    for link in links_in(path.read_text()):
        file, _, anchor = link.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{path.relative_to(ROOT)} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings], f"{path}: {link}"


@document
def test_every_make_target_exists(path: Path) -> None:
    for line in re.findall(r"\bmake ((?:[A-Z_]+=\S+ )*[a-z][\w<>%-]*(?: [a-z]+-[\w<>-]+)*)", code_in(path.read_text())):
        for word in line.split():
            assert "=" in word or re.fullmatch(targets(), word), f"{path.relative_to(ROOT)}: make {word}"


@document
def test_every_module_can_be_found(path: Path) -> None:
    for module in re.findall(r"python -m ((?:data|models|recipes|eval)[\w.]*\w)", path.read_text()):
        assert importlib.util.find_spec(module), f"{path.relative_to(ROOT)}: python -m {module}"


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*/README.md")), ids=lambda path: path.parent.name)
def test_every_name_in_a_table_of_code_exists(path: Path) -> None:
    """The right column of "| paper | code |": each name is in the package's own sources, or in a file that the row names."""
    rows = re.search(r"^\| paper \| code \|\n\|[-|]+\n((?:\|.*\n)+)", path.read_text(), re.MULTILINE)
    for row in rows[1].splitlines() if rows else ():
        code = row.strip("| ").split("|")[-1]
        named = [file for name in paths_in(code) for file in found(name, path.parent)]
        source = "\n".join(file.read_text() for file in {*path.parent.glob("*.py"), *named})
        for name in re.findall(r"`([^`]+)`", code):
            for word in re.findall(r"[A-Za-z_]\w*", name) if "/" not in name and not name.startswith("make ") else ():
                assert word == "py" or re.search(rf"\b{word}\b", source) or (path.parent / f"{word}.py").exists(), f"{path}: {name}"


@pytest.mark.parametrize("sought", FINDS)
def test_a_newcomer_finds_it_in_three_files(sought: str) -> None:
    target, words = FINDS[sought]
    assert words in (ROOT / target).read_text()
    start = (ROOT / "README.md").resolve()
    near = {start, *mentioned(start)}
    assert (ROOT / target).resolve() in near | {file for each in near if each.suffix == ".md" for file in mentioned(each)}


def mentioned(path: Path) -> set[Path]:
    """The files that a document names or links to."""
    text = path.read_text()
    files = [file for name in paths_in(text) for file in found(name, path.parent)]
    linked = [(path.parent / link.partition("#")[0]).resolve() for link in links_in(text) if link.partition("#")[0]]
    return {each for each in [*files, *linked] if each.is_file()}


def code_in(text: str) -> str:
    """Blocks and spans of code, a line each."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))


@pytest.mark.parametrize("wrong", ["`models/layers.py`", "`elsewhere.py`", "see recipes/nowhere.py", "(`tests/models/test_unknown*.py`)"])
def test_a_missing_file_is_noticed(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / ".venv" / "lib").mkdir(parents=True)
    (tmp_path / ".venv" / "lib" / "elsewhere.py").touch()
    assert [name for name in paths_in(wrong) if not found(name, tmp_path)]


def test_a_missing_target_is_noticed() -> None:
    assert not re.fullmatch(targets(), "train-nothing")
    assert re.fullmatch(targets(), "train-lit")
