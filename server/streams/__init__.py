"""Responses as numbered logs: producers append, readers follow from any number.

    Registry.create -> Producer -> EventLog -> Reader        a live response
                                      |
                                  StoreWriter -> StreamStore  what outlives memory

`open_streams` puts it together. Wire formats and transports stand on `Reader`.
"""
