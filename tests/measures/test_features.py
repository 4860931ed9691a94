"""Feature tables against a direct reading of all activations."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from scalar_sae.measures.features import AFTER, BEFORE, OCTAVES, read_features
from scalar_sae.sites import Site
from tests.helpers import random_sae, tiny_lm

SITE = Site("resid_mid", 1)
TOKENS = torch.randint(0, 32, (9, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], list[dict], np.ndarray]:
    out = tmp_path_factory.mktemp("features") / "sae"
    lm, sae = tiny_lm(), random_sae(16, 24, 4, 0)
    read_features(lm, SITE, sae, TOKENS, out, n_examples=5, batch=2)
    acts = sae.encode(lm.activations(TOKENS, [SITE])[SITE]).numpy()
    latents, contexts = (pq.read_table(out / f"{name}.parquet").to_pylist() for name in ("latents", "contexts"))
    return latents, contexts, acts


def test_a_row_a_latent(tables: tuple[list[dict], list[dict], np.ndarray]):
    latents, _, acts = tables
    assert [row["latent"] for row in latents] == list(range(24))
    for row in latents:
        mine = acts[..., row["latent"]]
        live = mine[mine > 0]
        assert row["density"] == pytest.approx(len(live) / TOKENS.numel())
        assert row["maximum"] == pytest.approx(mine.max(), rel=1e-5)
        assert row["mean"] == pytest.approx(live.mean() if len(live) else 0, rel=1e-4)
        assert sum(row["octaves"]) == len(live)
        peak = OCTAVES[int(np.flatnonzero(row["octaves"])[-1])] if len(live) else None
        assert peak is None or 2.0**peak <= live.max() * 1.00001 < 2.0 ** (peak + 1) * 1.0001


def test_examples_are_the_strongest_and_a_sample(tables: tuple[list[dict], list[dict], np.ndarray]):
    _, contexts, acts = tables
    for latent in range(24):
        mine = acts[..., latent]
        for kind in ("top", "random"):
            rows = [row for row in contexts if row["latent"] == latent and row["kind"] == kind]
            values = [mine[row["prompt"], row["position"]] for row in rows]
            assert len({(row["prompt"], row["position"]) for row in rows}) == len(rows) == min(5, (mine > 0).sum())
            assert all(value > 0 for value in values)
            if kind == "top":
                assert values == pytest.approx(sorted(mine[mine > 0].tolist(), reverse=True)[:5], rel=1e-5)


def test_each_example_has_its_window(tables: tuple[list[dict], list[dict], np.ndarray]):
    _, contexts, acts = tables
    assert contexts
    for row in contexts:
        first, last = max(0, row["position"] - BEFORE), min(16, row["position"] + AFTER + 1)
        assert row["start"] == first
        assert row["tokens"] == TOKENS[row["prompt"], first:last].tolist()
        assert row["acts"] == pytest.approx(acts[row["prompt"], first:last, row["latent"]].tolist(), abs=1e-5)
