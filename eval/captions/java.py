"""The two caption metrics that only Java programs compute: METEOR 1.5 (Denkowski and Lavie 2014) and SPICE (Anderson et al. 2016).

pycocoevalcap contains the programs. METEOR's dictionaries take some ten seconds to load, so one process serves a whole
evaluation and all processes that share its work. SPICE parses sentences and also needs Stanford's CoreNLP 3.6.0, 400 MB that
pycocoevalcap does not contain.
"""

from __future__ import annotations

import atexit
import fcntl
import math
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from threading import Timer

import numpy as np

from eval import EvalError
from eval.captions.tokens import has_java

NO_JAVA = "needs Java (the `java` command), which is not on this machine"
SECONDS = 600  # for the captions of one split; METEOR does some 500 a second

# METEOR 1.5's parameters for English, tuned to rank translations (Denkowski and Lavie 2014, table 2): alpha, beta, gamma, delta,
# and the weights of exact, stem, synonym and paraphrase matches.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
STAGES = (1.0, 0.6, 0.8, 0.6)


def why_no_meteor() -> str:
    """ "" where METEOR can run."""
    return "" if has_java() else NO_JAVA


def why_no_spice() -> str:
    """The reason why SPICE cannot run, or "". Its models are never downloaded here; pycocoevalcap has a script for that."""
    library = Path(str(files("pycocoevalcap.spice") / "lib"))
    missing = [name for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar") if not (library / name).exists()]
    if not has_java():
        return NO_JAVA
    return f"needs {missing[0]}: `python -m pycocoevalcap.spice.get_stanford_models` fetches it" if missing else ""


class Meteor:
    """METEOR's statistics of captions; `meteor_score` makes scores of them. Forks of this process use it in turns."""

    def __init__(self) -> None:
        jar = str(files("pycocoevalcap.meteor") / "meteor-1.5.jar")
        command = ["java", "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, encoding="utf-8")
        self._turn = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the process
        atexit.register(self._kill)

    def statistics(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[float]]:
        """23 counts for each tokenised caption (of lengths, matches and chunks), against the reference that it fits best."""
        watch = Timer(SECONDS, self._kill)  # a reader of a pipe would wait for ever
        watch.start()
        try:
            return [self._statistics(caption, given) for caption, given in zip(captions, references, strict=True)]
        finally:
            watch.cancel()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)  # Popen.kill does nothing in a fork

    def _statistics(self, caption: str, references: Sequence[str]) -> list[float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        fcntl.lockf(self._turn, fcntl.LOCK_EX)  # released if this process dies
        try:
            if os.fstat(self._turn.fileno()).st_size:
                self._process.stdout.readline()  # the answer to a process that died
            os.pwrite(self._turn.fileno(), b"?", 0)
            self._process.stdin.write(" ||| ".join(("SCORE", *references, caption)) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline().split()
            os.ftruncate(self._turn.fileno(), 0)
        except BrokenPipeError:
            answer = []
        finally:
            fcntl.lockf(self._turn, fcntl.LOCK_UN)
        if len(answer) != 23:
            raise EvalError(f"METEOR stopped at the caption {caption!r:.80} (answered {answer}): it needs a working `java -Xmx2G`")
        return [float(number) for number in answer]


@cache
def meteor() -> Meteor:
    """The one process; begins to load when first called."""
    return Meteor()


def meteor_score(statistics: Sequence[Sequence[float]]) -> float:
    """METEOR of a corpus, whose counts are the sums of its captions' (Denkowski and Lavie 2014, section 2.2)."""
    rows = np.asarray(statistics, np.float64)
    same = (rows[:, 20] == 1) & (rows[:, 21:23] == rows[:, :2]).all(axis=1)  # the caption is its reference: nothing is fragmented
    counts, chunks = rows.sum(axis=0), rows[~same, 20].sum()
    lengths, functions, stages, matched = counts[:2], counts[2:4], counts[4:20].reshape(4, 2, 2), counts[21:23]  # caption, reference
    words = DELTA * stages[:, 0] + (1 - DELTA) * stages[:, 1]  # [stage, caption or reference]; content words weigh more
    size = DELTA * (lengths - functions) + (1 - DELTA) * functions
    if not words.any() or not size.all():
        return 0.0
    precision, recall = np.asarray(STAGES) @ words / size
    mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
    return float(mean * (1 - GAMMA * math.pow(chunks / matched.mean(), BETA)))


def spice(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """SPICE's F-score of each tokenised caption; NaN where neither the caption nor the references hold a proposition."""
    from pycocoevalcap.spice.spice import Spice

    numbered = range(len(captions))
    try:
        _, scores = Spice().compute_score({i: list(references[i]) for i in numbered}, {i: [captions[i]] for i in numbered})
    except (OSError, subprocess.CalledProcessError) as error:
        raise EvalError(f"SPICE failed ({error}); it was written for Java 8, `java -version` says which this is") from error
    return [float(score["All"]["f"]) for score in scores]
