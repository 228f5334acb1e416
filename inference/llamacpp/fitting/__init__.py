"""What an engine takes of memory, read from the headers of files before it is loaded.

`fit` adds it up, from `dimensions` of the model and `buffers` for a batch. Nothing here
loads llama.cpp. What would fit where something does not is in `remedies`, one level up,
which knows the weights formats of `tuning` too.
"""
