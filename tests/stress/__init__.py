"""Rough handling, repeated: `python -m tests.stress` (= `make stress`)."""
