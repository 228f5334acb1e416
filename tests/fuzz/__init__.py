"""Fuzzing of everything that reads bytes from outside.

`targets` says what is fed and what must hold. `python -m tests.fuzz TARGET` lets atheris
search for bytes that break it (CONTRIBUTING.md), and the tests here feed the same
targets with what hypothesis makes up.
"""
