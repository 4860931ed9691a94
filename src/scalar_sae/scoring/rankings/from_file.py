"""A ranking from a file: one score for every edge."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.digests import digest
from scalar_sae.errors import UserError, reason
from scalar_sae.readers import open_regular
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.rankings.base import EdgeScores, GlobalRanking, KeepJob, RankingJob

SMALLEST_NORMAL, LARGEST_FINITE = 0x00800000, 0x7F7FFFFF
"""As the bits of a float32."""
MOST_RANK = LARGEST_FINITE - SMALLEST_NORMAL
SUFFIXES = (".safetensors", ".npy")


@dataclass(frozen=True)
class FileRanking(GlobalRanking):
    """Scores that somebody saved; `name` is the path."""

    _read: list[EdgeScores] = field(default_factory=list[EdgeScores], repr=False, compare=False)
    """The scores between their fingerprint and their use, so that the file is read once."""

    def fingerprint(self, pair: Pair) -> str:
        """A digest of the scores.

        Raises:
            UserError: the file cannot be read as scores of the pair's edges.
        """
        self._read[:] = [saved_scores(Path(self.name), pair)]
        return digest(self._read)

    def scores(self, job: RankingJob) -> EdgeScores:
        """The scores in the file."""
        job.on_progress(len(job.tokens) / distributed.world_size())
        return self._read.pop() if self._read else saved_scores(Path(self.name), job.pair)

    def found_scores(self, job: KeepJob) -> EdgeScores:
        """The scores in the file, which need no checkpoint."""
        tokens = job.texts.ranking[: job.n_ranked]
        room = self.room(job.pair, job.memory, tokens.shape[1], len(job.counts))
        return self.scores(RankingJob(job.pair, tokens, job.seed, job.on_progress, room))


def in_file(path: str) -> FileRanking:
    """The ranking in a file."""
    return FileRanking(path, "the scores in a file", reads_text=False)


def saved_scores(path: Path, pair: Pair) -> Float[Tensor, "n_up n_down"]:
    """A ranking from a file: one score for every edge. Whole numbers keep their order to the last; others may tie
    where they agree to seven digits.

    Raises:
        UserError: not readable, complex or NaN, of another shape, or too large or small for float32.
    """
    matrix = _saved_matrix(path, (pair.up.d_sae, pair.down.d_sae))
    if matrix.is_complex() or any(row.isnan().any() for row in matrix):
        raise UserError(f"{path}: scores must be real numbers, none of them NaN")
    if matrix.dtype == torch.float32:
        return matrix
    narrow = torch.empty(matrix.shape)
    if matrix.is_floating_point():
        for to, row in zip(narrow, matrix, strict=True):  # row by row: there may be billions
            to.copy_(row)
            if not torch.equal(to.isinf() | (to == 0), row.isinf() | (row == 0)):
                raise UserError(f"{path}: scores too large or too small for float32; rescale them, or save their ranks")
        return narrow
    least, most = min(int(row.long().min()) for row in matrix), max(int(row.long().max()) for row in matrix)
    if most - least > MOST_RANK:
        raise UserError(f"{path}: whole numbers from {least} to {most}; save ranks, or floating-point scores")
    for to, row in zip(narrow, matrix, strict=True):
        to.copy_((row.long() - least + SMALLEST_NORMAL).int().view(torch.float32))  # floats are in the order of bits
    return narrow


def _saved_matrix(path: Path, shape: tuple[int, int]) -> Tensor:
    """The one matrix of a .npy or .safetensors file. Its numbers are read only if it has the shape."""
    try:
        open_regular(path).close()
        if path.suffix == ".npy":
            mapped = np.load(path, "r", allow_pickle=False)
            if not isinstance(mapped, np.ndarray):
                raise UserError(f"{path}: an archive, expected one matrix; save it with numpy.save")
            _check_shape(path, mapped.shape, shape)
            return torch.from_numpy(np.array(mapped))
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if len(names) != 1:
                raise UserError(f"{path}: expected one tensor, found {len(names)}: {', '.join(names[:8]) or 'none'}")
            _check_shape(path, tuple(file.get_slice(names[0]).get_shape()), shape)
            return file.get_tensor(names[0])
    except UserError:
        raise
    except Exception as error:  # a damaged header fails in as many ways as it has fields
        raise UserError(
            f"{path}: cannot be read as a score matrix ({reason(error)}); save it again with numpy.save"
        ) from error


def _check_shape(path: Path, found: tuple[int, ...], shape: tuple[int, int]) -> None:
    if tuple(found) != shape:
        raise UserError(f"{path}: shape {tuple(found)}, the pair needs {shape}; save the scores of its edges")
