"""Measured choice of weights format, threads and batch size for one model on one machine.

    formats.py     which formats there are, and how large a file gets
    divergence.py  pure: what another format costs in quality
    choice.py      pure: scores, classes, preferences, the choice
    profile.py     what was found, as a TOML file
    places.py      where profiles and requantized files lie
    maker.py       makes the files in other formats
    search.py      the procedure: which measurement, in which order
    jobs.py        what one measuring process is asked, and answers
    runner.py      starts those processes and ends them
    child.py       such a process; the only one that loads llama.cpp, through session.py

Whoever only reads profiles loads neither llama.cpp nor NumPy.
"""
