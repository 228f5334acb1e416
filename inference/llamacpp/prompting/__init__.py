"""From messages to a prompt: a model's chat templates, run in a sandbox with limits.

Templates are programs by strangers: `sandbox` says what they may do, `budget` how much,
`template` for how long. `prompts` says which template of a model a request gets.
"""
