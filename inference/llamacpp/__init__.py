"""The llama.cpp engine: a scheduler with continuous batching in a process of its own.

The server holds `client`; everything else here lives in the child that `worker` starts
and `assembly` builds. llama.cpp is touched by `bindings`, `context` and what samples,
drafts or measures beside them.

    scheduling/    pure: which tokens the next step computes, in which lanes
    saved/         the bytes of lanes that are not in the cache
    prompting/     from messages to a prompt
    constraints/   bounds on what a sequence may say
    sampling/      drawing a token
    embeddings/    the process that makes vectors instead of text
    fitting/       what an engine takes of memory, before it is loaded
    tuning/        which weights format this machine runs fastest
"""
