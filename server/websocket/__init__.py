"""WebSockets: several responses at once over one connection.

`protocol` is the transport, `session` one connection's life, `following` one response on
it. What is said stands in `server.wire.websocket`, who may connect in
`server.routes.websocket`.
"""
