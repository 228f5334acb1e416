"""What breaks in a server's life, done to a real one on purpose: `python -m benchmarks.faults`.

Each fault starts `headrace serve` as a process of its own, with the real default model,
and talks to it over real sockets. One line says what was done, what was seen, and whether
that is what the server promises. `docs/operations.md` says what each line means.
"""
