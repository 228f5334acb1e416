"""Tokens in, events out: the inference layer, which knows neither HTTP nor dialogue.

`types` and `errors` say what goes in and comes out, `engine` the protocol between
them. `llamacpp` and `scripted` implement it.
"""
