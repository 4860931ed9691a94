"""Play the corpus and print what failed, by class: python -m tests.robustness.corpus [WORD ...]

Every case, or those in whose name one of the words is.
"""

import sys
import time
from collections import Counter
from functools import partial

from tests.robustness.corpus.files import file_cases
from tests.robustness.corpus.options import option_cases
from tests.robustness.corpus.player import Player
from tests.robustness.corpus.system import system_cases


def main(words: list[str]) -> int:
    """Returns the number of failures."""
    failed: Counter[str] = Counter()
    played, start = 0, time.monotonic()
    with Player() as player:
        plays = [(case.name, partial(player.file, case)) for some in file_cases(player.world).values() for case in some]
        plays += [(case.name, partial(player.option, case)) for case in option_cases()]
        plays += [(case.name, partial(player.system, case)) for out in ("closed", "full") for case in system_cases(out)]
        for name, play in plays:
            if words and not any(word in name for word in words):
                continue
            played += 1
            if wrong := play():
                failed[wrong.partition(":")[0]] += 1
                sys.stdout.write(f"{name}\n    {wrong}\n")
                sys.stdout.flush()
    sys.stdout.write(f"{played} cases, {sum(failed.values())} failed, {time.monotonic() - start:.0f} s\n")
    for kind, n in failed.most_common():
        sys.stdout.write(f"{n:6} {kind}\n")
    return sum(failed.values())


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
