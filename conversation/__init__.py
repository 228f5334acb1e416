"""Turns, context, flows, tools and feedback: what will stand between the edge and the engine.

Nothing lives here yet; the stateless API needs none of it.
"""
