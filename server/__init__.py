"""The edge: parse, admit, stream, measure. It knows HTTP and, through the engine, no more.

`app.create_app` wires everything; `routes` has one module per API family, `wire` what
those look like as bytes.
"""
