"""What the APIs look like as bytes: requests parsed, engine events projected.

One module per API family, and `decoding` and `common` for what they share. Nothing
here sends or awaits anything: a projection turns one engine event into the chunks that
show it, whoever transports them.
"""
