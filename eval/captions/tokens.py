"""Penn Treebank tokens without punctuation, as caption metrics are defined on (Chen et al. 2015, arXiv:1504.00325, section 3).

Stanford's PTBTokenizer does it where Java is there: published scores were made with it. Elsewhere `_tokens` follows its rules;
the two agree on everything that captions usually hold. They differ in rare abbreviations, smileys and exotic symbols.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from eval import EvalError

# What pycocoevalcap takes out. Brackets stay in as "-lrb-": it looks for them in capitals, after they were made lower case.
PUNCTUATION = frozenset(("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
SECONDS = 600


def tokenise(captions: Sequence[str]) -> list[str]:
    """Each caption's lower-case tokens, joined by single spaces; "" where nothing is left."""
    lines = [_one_line(caption) for caption in captions]
    split = _stanford(lines) if has_java() else [_tokens(line) for line in lines]
    return [" ".join(token for token in tokens if token and token not in PUNCTUATION) for tokens in split]


def tokeniser() -> str:
    return "Stanford PTBTokenizer" if has_java() else "PTB rules in Python (no Java here)"


@cache
def has_java() -> bool:
    return shutil.which("java") is not None


def _one_line(caption: str) -> str:
    """Without anything that would end a line, for the captions after it would then be taken for each other's."""
    return " ".join(caption.encode("utf-8", "replace").decode().replace("\0", " ").splitlines())


def _stanford(lines: Sequence[str]) -> list[list[str]]:
    if not lines:
        return []
    jar = files("pycocoevalcap.tokenizer") / "stanford-corenlp-3.4.1.jar"
    options = ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", *options]
    # A full stop keeps the last lines from being lost where they are empty.
    done = subprocess.run(command, input="\n".join([*lines, "."]).encode(), capture_output=True, timeout=SECONDS, check=False)
    found = done.stdout.decode().split("\n")[: len(lines)]
    if done.returncode or len(found) != len(lines):
        complaint = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise EvalError(f"PTBTokenizer gave {len(found)} lines for {len(lines)} captions ({complaint[0]}); check `java -version`")
    return [line.strip().split(" ") for line in found]  # a token can hold a no-break space: "5\u00a01/2"


# ------------------------------------------------------------------------------------------ the same without Java

_LETTER = r"[^\W\d_]"
_WORD = rf"{_LETTER}(?:{_LETTER}|\d)*(?:[.!?]{_LETTER}(?:{_LETTER}|\d)*)*"
_PART = rf"(?:{_WORD}|\d+\w*)"
_ABBREVIATION = r"(?:mr|mrs|ms|dr|st|prof|sen|gen|jr|sr|inc|ltd|corp|etc|vs|ave|rd|mt|ft|jan|feb|aug|sept|oct|nov|dec|no(?=\. ?\d))"
_TOKEN = re.compile(
    "|".join(
        (
            r"https?://[^ \"<>|()]*[^ \"<>|.!?(){},-]|www\.[^ \"<>|()]+[^ \"<>|.!?(){},-]",
            r"[a-z0-9][a-z0-9_.-]*@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]+",
            r"</?[a-z][^<>]*>",
            r"(?<![\w./'-])(?:can(?=not(?![\w/]))|(?:gon|wan)(?=na(?![\w/]|\.\w))|got(?=ta\b)|(?:gim|lem)(?=me\b))",
            r"(?:(?<=\bcan)not|(?<=\bgon)na|(?<=\bwan)na|(?<=\bgot)ta|(?<=\bgim)me|(?<=\blem)me)\b",
            rf"{_LETTER}+(?=n't\b)|n't\b|'(?:s|m|d|ll|re|ve)\b",
            r"'n'|'(?:em|tis|twas|cause|til|till)\b|'\d0s\b|o'clock\b|\b[odl]'[^\W\d_]+|\by'(?=all\b)",
            rf"\b{_ABBREVIATION}\.(?!\w)|\b(?:[a-z]\.)+(?!\w)",
            r"[@#][^\W\d_]\w*",
            r"\d+(?:[.,:]\d+)+|\d+ \d+/\d+\b|\d+/\d+\b|\.\d+",
            r"[a-z0-9]+(?:/[a-z0-9]+)+\b",
            rf"{_PART}(?:[-_]{_PART})*",
            r"\.(?: ?\.)+|-{2,}|[!?]{2,}|\*+|''|``|\S",
        )
    )
)
_READ = str.maketrans({"\N{RIGHT SINGLE QUOTATION MARK}": "'", "\N{LEFT SINGLE QUOTATION MARK}": "`", "\N{EN DASH}": "--", "—": "--"})
_BEYOND = re.compile("[\U00010000-\U0010ffff]")  # Stanford's lexer reads 16-bit units and drops what takes two
_WRITTEN = {'"': "''", "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_WRITTEN |= {"“": "``", "”": "''", "…": "...", "£": "#", "€": "$", "½": "1/2", "¼": "1/4", "¾": "3/4"}


def _tokens(line: str) -> list[str]:
    plain = _BEYOND.sub(" ", line.lower().translate(_READ))
    found = [token.replace(" ", "\u00a0") for token in _TOKEN.findall(plain)]
    return ["..." if token.startswith((".\u00a0", "..")) else _WRITTEN.get(token, token) for token in found]
