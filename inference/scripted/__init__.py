"""A deterministic engine, shipped so that people can test their own clients.

`script` says what it plays, `pieces` is its tokenizer, `reply` turns a rule into
tokens and text, `engine` queues, counts and fails as told.
"""

from inference.scripted.engine import ScriptedEngine
from inference.scripted.script import (
    Die,
    Fail,
    Fault,
    Hang,
    RefuseTemplate,
    Rule,
    Script,
    ScriptError,
    load_script,
)

__all__ = [
    "Die",
    "Fail",
    "Fault",
    "Hang",
    "RefuseTemplate",
    "Rule",
    "Script",
    "ScriptError",
    "ScriptedEngine",
    "load_script",
]
