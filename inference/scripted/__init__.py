"""A deterministic engine, shipped so that people can test their own clients.

`script` says what it plays, `pieces` is its tokenizer, `reply` turns a rule into
tokens and text, `engine` queues and counts, `faults` has it fail as told.
"""

from inference.scripted.engine import ScriptedEngine
from inference.scripted.script import (
    Die,
    Fail,
    Fault,
    Hang,
    RefuseTemplate,
    Restart,
    Rule,
    Script,
    ScriptError,
    Wait,
    load_script,
)

__all__ = [
    "Die",
    "Fail",
    "Fault",
    "Hang",
    "RefuseTemplate",
    "Restart",
    "Rule",
    "Script",
    "ScriptError",
    "ScriptedEngine",
    "Wait",
    "load_script",
]
