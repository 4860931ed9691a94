"""Methods whose papers we could not read in full: abstracts, reviews and summaries only.

Each file says what is known and what is a guess. `scalar ls`, the notes when such SAEs are loaded, and the cautions of
their records say that the method is our reading. A file moves one folder up when it is checked against the paper.
"""

UNVERIFIED = ("atm", "feature_choice", "g_sae", "mutual_choice")
REMARK = "is our reading of a paper whose body was not available to us"
