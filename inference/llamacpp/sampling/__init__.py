"""Drawing a token: llama.cpp's sampler chains, and what is read from a row of logits.

`devicesampling` is pure: it says whose tokens are drawn in the graph of the model.
`devicechains`, beside the step loop, attaches the chains that do it to lanes.
"""
