"""Schema versions of the files that evaluations and claims write and reports read. A change in the meaning of a field needs a new one."""

EVALUATION = 1  # eval.json
SHOWCASE = 3  # showcase.json
CLAIM = 1  # what `make claims-<page>` writes
