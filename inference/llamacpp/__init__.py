"""The llama.cpp engine: a scheduler with continuous batching in a process of its own.

The server holds `client`; everything else here lives in the child that `worker`
starts. `scheduler`, `lanes` and `steptime` are pure; `bindings` and `sampling` are the
only modules that touch llama.cpp.
"""
