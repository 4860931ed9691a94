"""Cases of the system: output that nobody takes."""

from dataclasses import dataclass

from tests.robustness.corpus.world import JOBS


@dataclass(frozen=True)
class SystemCase:
    """A job whose standard output is `closed` or `full`."""

    job: str
    stdout: str

    @property
    def name(self) -> str:
        """What tells it from all others."""
        return f"{self.job}: output is {self.stdout}"


def system_cases(stdout: str) -> list[SystemCase]:
    """Every job with such an output."""
    return [SystemCase(job, stdout) for job in JOBS]
