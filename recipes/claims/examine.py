"""Test a paper's claims: `python -m recipes.claims siglip [--seeds 0,1,2] [--only NAME]` (= `make claims-siglip`).

Prints how the arms differ and an estimate of the time, trains and evaluates missing runs, and writes the result. Finished runs are
reused, also those of other claims and of `make train-<page>`. After an interruption, the same command resumes. On a CPU each process uses
one thread, so that results do not depend on the number of parallel jobs.

    .runs/claims/runs/<page>-<preset>-<digest of the recipe>-s<seed>/   runs that are not already in .runs
    .runs/claims/<page>/measured/<claim>.<arm>.s<seed>.json             the measurement of one run
    .runs/claims/<page>/<claim>.json                                    the result of one claim:

    schema                1
    model, claim, preset, dataset, seeds
    sentence, paper       the paper's claim, and the paper's numbers with section or table
    note                  how this experiment differs from the paper's
    metric, better        the metric, and whether the first arm is expected to be "higher" or "lower"
    arms                  one entry per arm: name, page, metric, values (one per seed), mean, low, high (95 % Student t over seeds; null
                          for one seed), differs ({field: [value in the first arm, value here]}), runs (folders), samples_seen per run
    comparisons           one entry per other arm: against, effect (first - other), low, high, differences (per seed), how (kind of
                          interval), verdict
    verdict               "reproduced", "not reproduced at this scale" or "reversed"
    cost                  total over distinct runs, without prerequisites: runs, samples_seen, train_seconds, train_flops, hardware;
                          shared: number of runs that are also runs of `make train-<page>`
    date, commit, versions  the last date, the code and the library versions of the runs; null if a run does not record them
    commands              commands that repeat the test
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from data.files import write_json
from data.shards import find
from eval.base import schemas
from eval.base.console import plain_console
from eval.base.metrics import t_interval
from eval.report.words import make
from eval.run import evaluate_run
from recipes.claims.claim import Claim, ClaimError, Measurement
from recipes.claims.estimate import estimate
from recipes.claims.experiment import Json, Question, apart, plan
from recipes.claims.verdict import compare, overall
from recipes.train.folder import finished, read_cost
from recipes.train.loop import train
from recipes.train.watch import Signals


def examine(
    page: str,
    *,
    preset: str = "tiny",
    seeds: Sequence[int] | None = None,
    only: str = "",
    data: str = "",
    device: str = "auto",
    jobs: int = 1,
    runs: Path = Path(".runs"),
    program: Sequence[str] = (sys.executable, "-m", "recipes.claims"),
) -> int:
    """Test the claims of `recipes/<page>.py` and write the results. `program` is the command that runs this module in another process.

    Returns 0; 1 if a claim could not be tested; or 128 + the number of the signal that stopped it. Raises ClaimError if a claim is
    declared incorrectly.
    """
    console = plain_console(soft_wrap=True)
    questions = plan(page, preset=preset, seeds=seeds, only=only, data=data, device=device, runs=runs)
    claims = list(dict.fromkeys(question.claim for question in questions))
    for claim in claims:
        console.print(f"{claim.name}: {claim.sentence}")
        for arm, differing in apart(claim, questions).items():
            fields = "; ".join(f"{name}: {there} | {here}" for name, (there, here) in differing.items())
            console.print(f"  {claim.arms[0].name} | {arm}: differ in {fields or 'nothing, as declared'}")

    missing = {question.run.key: question.run for question in questions if question.answer is None}
    console.print(estimate([run for run in missing.values() if not finished(run.folder)], len(missing), jobs, runs))
    again = [*program, page, "--preset", preset, "--device", device, "--runs", str(runs)]
    again += [f"--data={data}"] if data else []
    again += [f"--only={only}"] if only else []
    again += ["--seeds", ",".join(map(str, seeds))] if seeds else []
    status = work({key: [*again, "--run", key] for key in missing}, jobs, runs / "claims" / "logs", console)
    if status > 1:
        return status
    for claim in claims:
        mine = [question for question in questions if question.claim == claim]
        if absent := [f"{question.arm.name} s{question.run.recipe.seed}" for question in mine if question.answer is None]:
            console.print(f"{claim.name}: not tested, because these runs have no measurement: {', '.join(absent)}")
            status = 1
            continue
        try:
            result = conclude(page, claim, mine, preset, data)
        except ClaimError as error:
            console.print(f"{claim.name}: not tested: {error}")
            status = 1
            continue
        write_json(runs / "claims" / page / f"{claim.name}.json", result)
        console.print("\n".join(summary(result)))
    return status


# ------------------------------------------------------------------------------------------------- training and evaluation


def answer(key: str, questions: Sequence[Question], runs: Path) -> int:
    """Train one run if necessary, evaluate the tasks that its questions require, and write the measurements."""
    open_questions = [question for question in questions if question.run.key == key and question.answer is None]
    if not open_questions:
        return 0
    run = open_questions[0].run
    if not finished(run.folder) and (status := train(run.recipe, run.folder, run.preset, shared=runs, page=run.page)):
        return status
    tasks = list(dict.fromkeys(task for question in open_questions for task in question.metric.tasks))
    if tasks:
        evaluate_run(run.folder, data=run.recipe.data, tasks=tasks, device=run.recipe.device)
    cost = read_cost(run.folder)
    for question in open_questions:
        found = question.metric.measure(run.folder, run.recipe, find(run.recipe.data, "train").name)
        about = {"identity": question.identity, "run": str(run.folder), "shared": run.folder.parent == runs, "cost": cost}
        write_json(question.path, about | asdict(found))
    return 0


def work(commands: dict[str, list[str]], jobs: int, logs: Path, console: Console) -> int:
    """Run commands, `jobs` in parallel, each with its own log file. A signal is forwarded once to all processes, which save and stop."""
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running, status = list(commands.items()), dict[str, tuple[subprocess.Popen[bytes], float]](), 0
    stopped, forwarded = Signals(), False
    while running or (waiting and not stopped.signal):
        while waiting and len(running) < jobs and not stopped.signal:
            key, command = waiting.pop(0)
            with (logs / f"{key}.log").open("w") as log:
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                # A new session, because the terminal's Ctrl-C would reach the child a second time, and only the first is caught.
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
            running[key] = process, time.monotonic()
            console.print(f"{key}: started, {len(waiting)} waiting ({logs / key}.log)")
        if stopped.signal and not forwarded:
            forwarded = True
            for process, _ in running.values():
                process.terminate()
        for key, (process, began) in list(running.items()):
            if (code := process.poll()) is None:
                continue
            del running[key]
            if code and not stopped.signal:
                status = 1
                last = (logs / f"{key}.log").read_text(errors="replace").splitlines()[-5:]
                console.print("\n  ".join([f"{key}: failed with status {code}; last lines of {logs / key}.log:", *last]))
            else:
                console.print(f"{key}: {'stopped' if code else 'done'} after {time.monotonic() - began:,.0f} s")
        time.sleep(0.2)
    stopped.release()
    return 128 + stopped.signal if stopped.signal else status


# ---------------------------------------------------------------------------------------------- result


def conclude(page: str, claim: Claim, questions: Sequence[Question], preset: str, data: str) -> Json:
    """The claim's result, in the format described at the top of this file. All questions must have answers.

    Raises ClaimError if an interval cannot be computed.
    """
    answers = {question: question.answer or {} for question in questions}
    by_arm = {arm.name: [answers[question] for question in questions if question.arm == arm] for arm in claim.arms}
    found = {name: [Measurement(each["value"], each["samples"]) for each in given] for name, given in by_arm.items()}
    first, *others = claim.arms
    compared = {arm.name: compare(found[first.name], found[arm.name], claim.better) for arm in others}
    differing = apart(claim, questions)
    runs = {each["run"]: each for each in answers.values()}
    seeds = list(dict.fromkeys(question.run.recipe.seed for question in questions))
    chosen = {"PRESET": preset if preset != "tiny" else "", "DATA": data, "SEEDS": ",".join(map(str, seeds))}
    return {
        "schema": schemas.CLAIM,
        "model": page,
        "claim": claim.name,
        "preset": preset,
        "dataset": find(questions[0].run.recipe.data, "train").name,
        "seeds": seeds,
        "sentence": claim.sentence,
        "paper": claim.paper,
        "note": claim.note,
        "metric": claim.metric.about,
        "better": claim.better,
        "arms": [
            {
                "name": arm.name,
                "page": arm.page or page,
                "metric": claim.metric_of(arm).about,
                **_spread([each.value for each in found[arm.name]]),
                "differs": differing.get(arm.name, {}),
                "runs": [each["run"] for each in by_arm[arm.name]],
                "samples_seen": by_arm[arm.name][0]["cost"]["samples_seen"],
            }
            for arm in claim.arms
        ],
        "comparisons": [{"against": name, **asdict(comparison)} for name, comparison in compared.items()],
        "verdict": overall([comparison.verdict for comparison in compared.values()]),
        "cost": {
            "runs": len(runs),
            "shared": sum(each["shared"] for each in runs.values()),
            **{name: sum(each["cost"][name] for each in runs.values()) for name in ("samples_seen", "train_seconds", "train_flops")},
            "hardware": ", ".join(dict.fromkeys(each["cost"]["hardware"] for each in runs.values())),
        },
        **origin([each["cost"] for each in runs.values()]),
        "commands": [make(f"claims-{page}", **chosen, ARGS=f"--only {claim.name}")],
    }


def origin(costs: Sequence[Json]) -> Json:
    """The last date, all commits and the library versions of the runs. Commit is None if an older run does not record it."""
    known = [cost for cost in costs if cost.get("commit")]
    return {
        "date": max((cost["date"] for cost in known), default=None),
        "commit": ", ".join(dict.fromkeys(cost["commit"] for cost in known)) if len(known) == len(costs) else None,
        "versions": known[-1]["versions"] if known else {},
    }


def summary(result: Json) -> list[str]:
    """The result as a few lines of text."""
    values = {arm["name"]: f"{arm['mean']:.3f}" for arm in result["arms"]}
    first = result["arms"][0]["name"]
    lines = [f"{result['claim']}: {result['verdict']}", f"  {result['sentence']} ({result['paper']})", f"  {result['metric']}"]
    for each in result["comparisons"]:
        other = each["against"]
        effect = f"{each['effect']:+.3f} ({each['low']:+.3f} to {each['high']:+.3f}; {each['how']})"
        lines.append(f"  {first} {values[first]}, {other} {values[other]}: {effect}: {each['verdict']}")
    cost = result["cost"]
    return [*lines, f"  {cost['runs']} runs, {cost['samples_seen']:,} samples, {cost['train_seconds'] / 60:.1f} minutes of training"]


def _spread(values: list[float]) -> Json:
    low, high = t_interval(values) if len(values) > 1 else (None, None)
    return {"values": values, "mean": sum(values) / len(values), "low": low, "high": high}
