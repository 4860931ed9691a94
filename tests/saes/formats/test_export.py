"""Export, read back, and what cannot be exported.

The libraries themselves open these files in `python -m tests.saes.formats.peer_files read FOLDER`, FOLDER being the
`--basetemp` of a run of this file; see there.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scalar_sae.errors import UserError
from scalar_sae.saes.activation import Activation, GroupMax, JumpReLU, ReLU, TopK
from scalar_sae.saes.export import export
from scalar_sae.saes.normalization import InputNorm
from scalar_sae.saes.origin import Origin
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.store import SaeCard, find_saes, load_saes, save_sae
from scalar_sae.sites import Site
from tests.helpers import random_sae
from tests.saes.formats.test_peer_files import decoded
from tests.test_study import scalar

D, F = 6, 16
READS, WRITES = Site("mlp_in", 1), Site("mlp_out", 1)


def sae(rule: Activation, **more: object) -> SAE:
    return replace(random_sae(D, F, 3, 0), activation=rule, **more)


JUMP = JumpReLU(torch.linspace(-0.2, 0.5, F))
SKIP = 0.3 * torch.randn(D, D, generator=torch.Generator().manual_seed(5))
SAELENS = {
    "standard": sae(ReLU()),
    "topk": sae(TopK(3)),
    "jumprelu": sae(JUMP),
    "layer_norm": sae(TopK(3), norm=InputNorm("layer_norm", 1e-5)),
    "constant_norm": sae(ReLU(), norm=InputNorm("constant_norm")),
    "transcoder": sae(ReLU(), writes=WRITES),
    "jumprelu_transcoder": sae(JUMP, writes=WRITES),
    "skip_transcoder": sae(ReLU(), writes=WRITES, W_skip=SKIP),
    "jumprelu_skip_transcoder": sae(JUMP, writes=WRITES, W_skip=SKIP),
}
SPARSIFY = {
    "topk": sae(TopK(3)),
    "groupmax": sae(GroupMax(4)),
    "transcoder": sae(TopK(3), writes=WRITES),
    "skip_transcoder": sae(TopK(3), writes=WRITES, W_skip=SKIP),
}


def own(sae: SAE, folder: Path) -> None:
    save_sae(sae, SaeCard.of(sae, "topk", "mine", READS, {}), folder)


@pytest.mark.parametrize(
    ("format_", "kind"), [("saelens", kind) for kind in SAELENS] + [("sparsify", kind) for kind in SPARSIFY]
)
def test_there_and_back(format_: str, kind: str, tmp_path: Path):
    one = (SAELENS if format_ == "saelens" else SPARSIFY)[kind]
    own(one, tmp_path / "own" / kind)
    (folder,) = export(find_saes(tmp_path / "own"), format_, tmp_path / "out", model="gpt2")
    ((found, read_as, _),) = find_saes(folder)
    assert read_as.lower() == format_
    x = torch.randn(20, D, generator=torch.Generator().manual_seed(1)) + 0.3
    acts = one.encode(x)
    torch.testing.assert_close(found.sae.encode(x), acts, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoded(found.sae, acts, x), decoded(one, acts, x), atol=1e-5, rtol=1e-5)
    ((site, back),) = next(iter(load_saes(folder).values())).items()
    assert (site, back.writes) == (READS, one.writes)
    expected = {"x": x, "acts": acts, "x_hat": decoded(one, acts, x)}
    save_file(expected, folder.with_name(folder.name + ".expected.safetensors"))


def test_every_growth_of_an_sae_survives_our_own_files(tmp_path: Path):
    for kind, one in {**SAELENS, **SPARSIFY}.items():
        own(one, tmp_path / kind)
        ((site, back),) = load_saes(tmp_path / kind)["mine"].items()
        assert (site, back.writes, back.norm, str(back.activation)) == (
            READS,
            one.writes,
            one.norm,
            str(one.activation),
        )
        x = torch.randn(4, D)
        assert torch.equal(decoded(back, back.encode(x), x), decoded(one, one.encode(x), x))


@pytest.mark.parametrize(
    ("format_", "one", "message"),
    [
        ("saelens", sae(GroupMax(4)), "SAELens has no SAE with GroupMax 4"),
        ("saelens", sae(TopK(3), writes=WRITES), "SAELens has no transcoder with TopK 3"),
        ("saelens", sae(ReLU(), writes=WRITES, norm=InputNorm("constant_norm")), "run-time normalisation"),
        ("sparsify", sae(JUMP), "sparsify keeps TopK and GroupMax SAEs, this one is JumpReLU"),
        ("sparsify", sae(TopK(3), norm=InputNorm("constant_norm")), "no run-time normalisation"),
        ("onnx", sae(ReLU()), "unknown format 'onnx': expected one of scalar, saelens, sparsify"),
    ],
)
def test_what_a_format_cannot_hold(format_: str, one: SAE, message: str, tmp_path: Path):
    own(one, tmp_path / "own")
    with pytest.raises(UserError, match=message):
        export(find_saes(tmp_path / "own"), format_, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_the_command(tmp_path: Path):
    for site in ("resid_mid.0", "resid_post.0"):
        one = random_sae(D, F, 3, 0)
        save_sae(one, SaeCard.of(one, "topk", "topk", Site.parse(site), {}), tmp_path / "run" / "saes" / "topk" / site)
    scalar("export", tmp_path / "run", "--out", tmp_path / "lens", "--model", "gpt2")
    assert sorted(path.name for path in (tmp_path / "lens" / "topk").iterdir()) == [
        "blocks.0.hook_resid_mid", "blocks.0.hook_resid_post",
    ]  # fmt: skip
    again = scalar("export", tmp_path / "run", "--out", tmp_path / "lens", check=False)
    assert "exists already; choose another --out" in again.stderr
    refused = scalar("export", tmp_path / "run", "--out", tmp_path / "s", "--format", "sparsify", check=False)
    assert "resid_mid.0: sparsify reads what a module writes" in refused.stderr
    listed = scalar("ls", tmp_path / "lens").stdout
    assert "blocks.0.hook_resid_mid" in listed
    assert "SAELens" in listed


def test_what_an_sae_was_trained_on_survives_an_export_to_saelens(tmp_path: Path):
    """Other people's by their origin, our own by their recipe; a path is no name of a model, and --model goes first."""
    known = Origin(model="gpt2", text="owner/text", context=64, bos=True, positions=[1, None, None])
    card = SaeCard.of(SAELENS["topk"], "topk", "theirs", READS, {}).model_copy(update={"origin": known})
    save_sae(SAELENS["topk"], card, tmp_path / "theirs")
    export(find_saes(tmp_path / "theirs"), "saelens", tmp_path / "a")
    ((back, _, _),) = find_saes(tmp_path / "a")
    assert back.origin == known
    for number, (lm, option, model, bos) in enumerate(
        [
            ("python-stdlib", "", "python-stdlib", False),
            (str(tmp_path), "", "", True),
            ("owner/name", "gpt2", "gpt2", None),
        ]
    ):
        recipe = {"config": {"lm": lm, "context": 48}} | ({} if bos is None else {"bos": bos})
        save_sae(SAELENS["topk"], SaeCard.of(SAELENS["topk"], "topk", "ours", READS, recipe), tmp_path / f"{number}")
        (folder,) = export(find_saes(tmp_path / f"{number}"), "saelens", tmp_path / f"b{number}", model=option)
        metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
        assert (metadata["model_name"], metadata["context_size"], metadata.get("prepend_bos")) == (model, 48, bos)
