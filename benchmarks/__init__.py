"""Load tests for servers that speak OpenAI's HTTP interface, Headrace among them.

Nothing here imports a server: every peer is a process, or a URL, on the other side of
a socket. Only `engine_run` and `edge` run engines of Headrace's themselves.
`python -m benchmarks --help` shows the commands, `docs/benchmarks.md` the definitions and
the rules of fairness.
"""
