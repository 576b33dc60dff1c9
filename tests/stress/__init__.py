"""Fault injection: `python -m tests.stress` (= `make stress`)."""
