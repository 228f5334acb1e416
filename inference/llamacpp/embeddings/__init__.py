"""An engine process that makes vectors or scores instead of text.

`calls` is the server's side. In the process `assembly` builds the rest: `intake` turns
texts into tokens, BERT's by way of `wordpiece`, `queue` says which come next, and `loop`
computes them in `context`. `queue` and `wordpiece` are pure.
"""
