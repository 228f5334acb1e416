"""Bounds on what a sequence may say: compiled off the step loop, checked token by token."""
