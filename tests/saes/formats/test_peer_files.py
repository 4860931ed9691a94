"""Files that SAELens, dictionary_learning and sparsify wrote themselves give the numbers that they compute.

`peer_files.py` wrote both; see there.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scalar_sae.saes.sae import SAE
from scalar_sae.saes.store import find_saes, load_saes
from scalar_sae.sites import Site

PEERS = Path(__file__).parent / "peers"
CASES = sorted(path.relative_to(PEERS) for path in PEERS.rglob("*") if path.is_dir() and path.parent != PEERS)


def decoded(sae: SAE, acts: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return sae.decode(acts, x) if sae.decodes_from_input else sae.decode(acts)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_encode_and_decode_are_the_peers_own(case: Path):
    expected = load_file(PEERS / f"{case}.expected.safetensors")
    ((found, format_, _),) = find_saes(PEERS / case)
    x = expected["x"]
    close = {"atol": 1e-4, "rtol": 1e-4} if "bf16" not in case.name else {"atol": 0.1, "rtol": 0.05}
    acts = found.sae.encode(x)
    torch.testing.assert_close(acts, expected["acts"], **close)
    torch.testing.assert_close(decoded(found.sae, acts, x), expected["x_hat"], **close)
    assert (expected["acts"] > 0).any()
    assert (expected["acts"] == 0).any()
    assert format_.lower() == case.parts[0]


def test_sites_and_groups():
    saelens = {path.name: load_saes(path) for path in (PEERS / "saelens").iterdir() if path.is_dir()}
    assert list(saelens["topk"]) == ["topk"]
    assert list(saelens["batchtopk"]) == ["batchtopk"], "SAELens saves it as jumprelu and remembers how it was trained"
    transcoder = saelens["skip_transcoder"]["skip_transcoder"][Site("resid_mid", 2)]
    assert transcoder.writes == Site("mlp_out", 2)
    assert (transcoder.d_model, transcoder.d_out) == (6, 5)
    sparsify = load_saes(PEERS / "sparsify")
    assert sparsify["topk-transcoder"][Site("mlp_in", 2)].writes == Site("mlp_out", 2)
    assert list(sparsify["topk"]) == [Site("resid_post", 2)]
    assert str(sparsify["groupmax"][Site("attn_out", 2)].activation) == "GroupMax 4"
    assert {str(site) for group in load_saes(PEERS / "dictionary_learning").values() for site in group} == {
        "resid_post.2"
    }
