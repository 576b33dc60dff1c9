"""Answers written elsewhere, scored as the published scripts do: `python -m eval.answers pope`, `python -m eval.answers vqa`."""
