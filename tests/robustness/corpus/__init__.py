"""A corpus of bad inputs, generated: kind of file x damage x verb, and option x bad value.

    warm.py      one process that has imported everything and forks a child for each command
    world.py     tiny fixtures of every kind of file, and the commands that read them
    damage.py    what happens to a file
    options.py   bad values for every option of every verb, read from the command line itself
    verdict.py   what a command may do with a bad input

`python -m tests.robustness.corpus` runs all of it and prints a table of the failures by class; `test_corpus.py` runs a
part, chosen evenly, in the time that a test suite has.
"""
