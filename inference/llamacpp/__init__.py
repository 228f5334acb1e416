"""The llama.cpp engine: a scheduler with continuous batching in a process of its own.

The server holds `client`; everything else here lives in the child that `worker` starts
and `assembly` builds. `scheduler` and all that it is made of are pure; llama.cpp is
touched by `bindings`, `context` and what samples, drafts or measures beside them.
"""
