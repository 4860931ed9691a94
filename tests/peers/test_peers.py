"""SAEs that the peers' own classes write, and ours as the peers read them: encode and decode to 1e-5.

Runs where the peers are installed (`make bench` makes such an environment): `.peers/bin/python -m pytest -W default
tests/peers`. Everywhere else `tests/saes/formats` compares with files that the peers wrote once.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scalar_sae.saes.export import export
from scalar_sae.saes.store import find_saes
from tests.saes.formats import peer_files
from tests.saes.formats.test_export import SAELENS, SPARSIFY, own
from tests.saes.formats.test_peer_files import decoded

pytest.importorskip("sae_lens")
pytest.importorskip("dictionary_learning")
pytest.importorskip("sparsify")

WRITERS = {
    "saelens": peer_files.write_saelens,
    "dictionary_learning": peer_files.write_dictionary_learning,
    "sparsify": peer_files.write_sparsify,
}


@pytest.mark.parametrize("peer", WRITERS)
def test_what_a_peer_writes_gives_the_peers_numbers(peer: str, tmp_path: Path):
    write: Callable[[Path], None] = WRITERS[peer]
    write(tmp_path)
    paths = sorted(tmp_path.glob("*.expected.safetensors"))
    assert paths
    for path in paths:
        expected, case = load_file(path), path.name.removesuffix(".expected.safetensors")
        ((found, _, _),) = find_saes(tmp_path / case)
        close = {"atol": 0.1, "rtol": 0.05} if "bf16" in case else {"atol": 1e-5, "rtol": 1e-5}
        acts = found.sae.encode(expected["x"])
        torch.testing.assert_close(acts, expected["acts"], **close, msg=lambda why, case=case: f"{case}: {why}")
        x_hat = decoded(found.sae, acts, expected["x"])
        torch.testing.assert_close(x_hat, expected["x_hat"], **close, msg=lambda why, case=case: f"{case}: {why}")


@pytest.mark.parametrize(
    ("format_", "kind"), [("saelens", kind) for kind in SAELENS] + [("sparsify", kind) for kind in SPARSIFY]
)
def test_what_we_export_gives_our_numbers_to_the_peer(format_: str, kind: str, tmp_path: Path):
    one = (SAELENS if format_ == "saelens" else SPARSIFY)[kind]
    own(one, tmp_path / "own" / kind)
    (folder,) = export(find_saes(tmp_path / "own"), format_, tmp_path / "out", model="gpt2")
    acts = one.encode(peer_files.X)
    peer_files.expect(folder, acts, decoded(one, acts, peer_files.X))
    peer_files.read(tmp_path / "out")
