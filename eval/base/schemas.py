"""Versions of the files that evaluations and claims write and reports read. One that changes what a field means has another number."""

EVALUATION = 1  # eval.json
SHOWCASE = 3  # showcase.json
CLAIM = 1  # what `make claims-<page>` writes
