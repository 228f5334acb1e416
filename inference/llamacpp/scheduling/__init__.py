"""Which tokens the next step computes, in which lane, and what is kept of them.

Pure: no clock, no thread, no I/O, no llama.cpp, and nothing else of Headrace. `scheduler`
is the one to ask and lists what it is made of; `lanes` has the words in which a plan
says what is done with the cache. Measured seconds come in as arguments, so property
tests can drive all of it through any history.
"""
