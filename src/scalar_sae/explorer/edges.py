"""The strongest edges of a pair under a ranking, and a table in the run that holds them.

Ranking takes seconds to minutes, and a page should open at once. What was ranked is therefore kept in the run
directory, as `explorer/METHOD/BLOCK.RANKING.parquet`, with everything that it depends on.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scalar_sae.console import say
from scalar_sae.digests import digest_of_sae
from scalar_sae.errors import UserError
from scalar_sae.evaluation.features.tables import as_arrow, write_table
from scalar_sae.explorer.files import OWN
from scalar_sae.explorer.questions import MOST
from scalar_sae.explorer.subject import PairSubject, Subject
from scalar_sae.io import atomic_write
from scalar_sae.records.results import Record
from scalar_sae.scoring.rankings.base import RankingJob
from scalar_sae.scoring.rankings.order import strongest
from scalar_sae.scoring.rankings.registry import find_global

_KEY = b"ranked"


def top_edges(subject: Subject, key: str, ranking: str, on_progress: Callable[[float], object]) -> pa.Table:
    """The strongest MOST edges: `up`, `down` and `weight`, strongest first, ties in the order of a curve.

    Args:
        subject: what is explored.
        key: the pair.
        ranking: the ranking of one of its records.
        on_progress: called with the share that is done.

    Raises:
        UserError: there is no such pair or ranking, or no text to rank on.
    """
    found = subject.pair_subject(key)
    record = found.record(ranking)
    path = _path(subject, key, ranking)
    identity = None if path is None or record is None else _identity(found, record)
    if path is not None and identity is not None and (kept := _read(path, identity)) is not None:
        return kept
    config, texts, pair = subject.config(record), subject.texts(record), subject.pair(key, ranking)
    tokens = texts.ranking[: config.n_rank_prompts]
    done = 0.0

    def step(share: float) -> None:
        nonlocal done
        done += share
        on_progress(min(1.0, done / len(tokens)))

    rule = find_global(ranking, "all edges")
    room = rule.room(pair, config.memory, tokens.shape[1], n_counts=2)
    scores = rule.scores(RankingJob(pair, tokens, config.seed, step, room))
    edges = strongest(scores, MOST, config.seed)
    up, down = edges.T
    columns = {"up": up, "down": down, "weight": scores[up, down].double()}
    table = pa.table({name: as_arrow(numbers.cpu().numpy()) for name, numbers in columns.items()})
    if path is not None and identity is not None:
        _keep(table.replace_schema_metadata({_KEY: identity}), path)
    return table


def _identity(subject: PairSubject, record: Record) -> bytes:
    """What the edges of a record depend on, with the weights of the SAEs that are there now."""
    about: dict[str, Any] = {"most": MOST, "hashes": record.hashes, "data": record.data, "config": record.config}
    about["saes"] = [digest_of_sae(subject.sae(end)) for end in ("up", "down")]
    return json.dumps(about, sort_keys=True).encode()


def _path(subject: Subject, key: str, ranking: str) -> Path | None:
    if subject.folder is None:
        return None
    pair = subject.pair_subject(key)
    return subject.folder / OWN / pair.method / f"{pair.block}.{ranking}.parquet"


def _read(path: Path, identity: bytes) -> pa.Table | None:
    """The table, if it is there, whole, and of this pair."""
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
    except (OSError, pa.ArrowException):
        return None
    return table if (table.schema.metadata or {}).get(_KEY) == identity else None


def _keep(table: pa.Table, path: Path) -> None:
    try:
        with atomic_write(path) as temporary:
            write_table(table, temporary)
    except UserError as error:
        say(f"ranked edges are not kept, and will be ranked anew next time: {error}")
