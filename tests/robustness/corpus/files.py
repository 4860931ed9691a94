"""Cases of files: each file of the world, each damage that fits it, each command that reads it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.robustness.corpus.damage import Damage, damages
from tests.robustness.corpus.world import JOBS

SAE = "run/saes/topk/resid_mid.0"
TABLES = "run/features/topk/resid_mid.0"
OF_SAES = ("ls", "export", "score", "resume-finished", "measure", "pull", "circuit", "features", "push", "blind",
           "quickstart")  # fmt: skip
FILES: dict[str, tuple[str, ...]] = {
    "run/results.json": ("report", "compare", "ls", "measure", "push", "features", "quickstart", "judge"),
    f"{SAE}/sae.json": OF_SAES,
    f"{SAE}/sae.safetensors": OF_SAES,
    "run/lm/config.json": ("score", "measure", "features", "quickstart", "resume-finished", "circuit"),
    "run/lm/model.safetensors": ("score", "measure", "features", "quickstart", "resume-finished", "circuit"),
    "run/lm/sha256.json": ("quickstart", "resume-finished"),
    "run/config.yaml": ("resume-finished", "quickstart"),
    f"{TABLES}/latents.parquet": ("judge", "features"),
    f"{TABLES}/contexts.parquet": ("judge", "features"),
    f"{TABLES}/vocabulary.parquet": ("judge", "features"),
    f"{TABLES}/judged.jsonl": ("judge", "features"),
    "run/features/topk/settings.json": ("features",),
    "blind/pairs.json": ("summary", "blind"),
    "blind/settings.json": ("blind",),
    "blind/a/contexts.parquet": ("blind",),
    "blind/b/vocabulary.parquet": ("blind",),
    "blind/answers/me.jsonl": ("summary",),
    "stopped/checkpoint.pt": ("resume",),
    "stopped/config.yaml": ("resume",),
    "lmstopped/checkpoint.pt": ("train-lm",),
    "cache/manifest.json": ("train-cached",),
    "cache/buffer-000000.safetensors": ("train-cached",),
    "small.yaml": ("train", "quickstart"),
    "ranking.npy": ("score-saved",),
    "text.txt": ("measure", "new-lm", "blind"),
    "lm/config.json": ("train",),
    "lm/model.safetensors": ("train",),
    "lm/training.json": ("train",),
    "peer/cfg.json": ("ls-peer", "export-peer"),
    "peer/sae_weights.safetensors": ("ls-peer", "export-peer"),
    "dictionary/ae.pt": ("ls-dictionary",),
    "dictionary/config.json": ("ls-dictionary",),
}
"""File -> the jobs that read it."""
ALSO = {"blind/answers/me.jsonl": ("no answers yet",), "text.txt": ("blind: holds other tables",)}
"""What else a message may say, where the damaged file is as good as none, or another one."""
OF_THE_USER = ("small.yaml", "text.txt", "ranking.npy", "peer/", "dictionary/", "lm/")
"""What people write themselves or get from elsewhere: changed, it may be another one that is valid."""


@dataclass(frozen=True)
class FileCase:
    """A job whose file is damaged."""

    file: str
    damage: str
    job: str
    apply: Damage
    may_differ: bool
    """Whether another result is right: the damaged file is another valid one."""

    @property
    def names(self) -> tuple[str, ...]:
        """What a message may call the file: its name, or what it is a part of."""
        path = Path(self.file)
        return (path.name, *([] if str(path.parent) == "." else [str(path.parent)]), *ALSO.get(self.file, ()))

    @property
    def name(self) -> str:
        """What tells it from all others."""
        return f"{self.job}: {self.file}: {self.damage}"


def file_cases(world: Path) -> dict[str, list[FileCase]]:
    """All cases of each file, by the file."""
    return {file: list(_cases(world, file, jobs)) for file, jobs in FILES.items()}


def _cases(world: Path, file: str, jobs: tuple[str, ...]) -> Iterator[FileCase]:
    for damage, apply in damages(world / file).items():
        for job in jobs:
            text = file.endswith((".json", ".yaml"))  # no digest is of these: another number in them is a valid one
            other = " is " in damage or damage in ("an unknown key", "missing") or (text and "flipped" in damage)
            free = file.startswith(OF_THE_USER) or other or file.endswith(".jsonl")
            yield FileCase(file, damage, job, apply, free)


def chosen(cases: list[FileCase], most: int) -> list[FileCase]:
    """Some of the cases of a file, evenly: every damage under the one job or the other, if there is room for that."""
    jobs = list(dict.fromkeys(case.job for case in cases))
    kinds = list(dict.fromkeys(case.damage for case in cases))
    wanted = {(kind, jobs[i % len(jobs)]) for i, kind in enumerate(kinds)}
    found = [case for case in cases if (case.damage, case.job) in wanted]
    stride = max(1, -(-len(found) // most))
    return [case for i, case in enumerate(found) if i % stride == len(case.file) % stride]


assert all(job in JOBS for jobs in FILES.values() for job in jobs)
