"""Do scores stay in their intervals when the device computes in TF32, or the model in bfloat16?

The shipped model, 512 x 512 latents, ranked and scored as `scalar score` does, three times: in float32; with matrix
products in TF32 (which a CPU does not have); with the model in bfloat16 and SAEs in float32.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.__main__ import toy_pair
from benchmarks.gpu.section import Found, Where
from scalar_sae.corpora import load_corpus, windows
from scalar_sae.lm.model import LanguageModel
from scalar_sae.records.results import Record
from scalar_sae.scoring.config import ScoreConfig, held_out
from scalar_sae.scoring.score import score

RANKING = "leave_one_out_with_prior"


def run(where: Where) -> Iterator[Found]:
    """edges@90, log area and floor in each precision, and whether they lie in float32's interval."""
    found: Found = {}
    lm = LanguageModel.load("python-stdlib")
    corpus = load_corpus("python-stdlib", lm)
    n_ranked, n_scored, context, grid = (2, 20, 16, "1,1000") if where.small else (32, 20, 128, "full")
    config = ScoreConfig(ranking=RANKING, rank_prompts=n_ranked, prompts=n_scored, context=context, edges=grid)
    texts = held_out(corpus, config)
    for block in ("ff_block.1", "transformer_block.1"):
        pair = toy_pair(block, windows(corpus.train, context)[:64], where.device)
        in_bfloat16 = replace(pair, lm=LanguageModel.load("python-stdlib", dtype="bfloat16", device=where.device))
        torch.set_float32_matmul_precision("highest")
        records: dict[str, Record] = {"float32": score(pair, texts, config, method="data")}
        found |= _said(block, "float32", records)
        yield found
        torch.set_float32_matmul_precision("high")
        records["TF32"] = score(pair, texts, config, method="data")
        found |= _said(block, "TF32", records)
        yield found
        torch.set_float32_matmul_precision("highest")
        records["bfloat16 model"] = score(in_bfloat16, texts, config, method="data")
        found |= _said(block, "bfloat16 model", records)
        yield found


def _said(block: str, precision: str, records: dict[str, Record]) -> Found:
    """The scores of a record, and whether they lie in the intervals of the one in float32."""
    found: Found = {}
    for name, value in _values(records[precision]).items():
        found[f"{block}, {precision}, {name}"] = value
        interval = records["float32"].ci.get(name)
        if precision != "float32" and interval is not None and value is not None:
            low, high = interval
            found[f"{block}, {precision}, {name} in float32's interval"] = low <= value <= high
    return found


def _values(record: Record) -> dict[str, float | None]:
    return {"edges_at.90": record.edges_at["90"], "log_area": record.log_area, "floor.kl": record.floor.kl}
