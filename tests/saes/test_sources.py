"""SAEs from anywhere: what users call them by, and which of them stand at the ends of a block."""

from pathlib import Path

import pytest
import torch

from scalar_sae.errors import UserError
from scalar_sae.records.results import Record, Results
from scalar_sae.saes.export import export
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.sources import Group, Source, site_in, together
from scalar_sae.saes.store import SaeCard, find_saes, load_saes, save_sae
from scalar_sae.sites import Site
from tests.helpers import random_sae, tiny_lm
from tests.saes.formats.test_formats import write_json
from tests.test_study import scalar

UP, DOWN = Site("resid_mid", 0), Site("resid_post", 0)
ENDS = {str(UP): lambda group: site_in(group, UP), str(DOWN): lambda group: site_in(group, DOWN)}


def test_what_a_source_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert Source.parse("runs/a") == Source("runs/a")
    assert Source.parse("resid_post.3=runs/a") == Source("runs/a", None, Site("resid_post", 3))
    assert Source.parse("mine=runs/a") == Source("runs/a", "mine")
    assert Source.parse("mine=resid_post.3=hf://me/saes@main/x") == Source(
        "hf://me/saes@main/x", "mine", Site("resid_post", 3)
    )
    assert Source.parse("runs/lr=0.1/saes") == Source("runs/lr=0.1/saes"), "no name has a slash"
    (tmp_path / "lr=0.1").mkdir()
    assert Source.parse("lr=0.1") == Source("lr=0.1"), "what exists is a path"
    for wrong in ("..=runs/a", "a=b=runs/a", "resid_post.3=mine=runs/a"):
        with pytest.raises(UserError):
            Source.parse(wrong)


def group(*sites: Site) -> Group:
    return Group({site: random_sae(4, 8, 2, seed) for seed, site in enumerate(sites)})


def test_groups_with_every_end_are_taken_as_they_are():
    groups = {"a": group(UP, DOWN), "b": group(UP), "c": group(UP, Site("resid_pre", 1))}
    assert list(together(groups, ENDS)) == ["a", "c"], "resid_pre.1 is resid_post.0"


def test_ends_of_two_groups_are_put_together_where_there_is_one_way():
    groups = {"b": group(DOWN), "a": group(UP), "elsewhere": group(Site("mlp_out", 0))}
    assert together(groups, ENDS) == {"a+b": {**groups["a"], **groups["b"]}}
    with pytest.raises(UserError, match=r"several SAEs at resid_mid.0 \(a, c\) and none of these at every end"):
        together(groups | {"c": group(UP)}, ENDS)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SAE, SAE]:
    """A model, a text, and two SAEs: a TopK one of SAELens and a BatchTopK one of dictionary_learning."""
    folder = tmp_path_factory.mktemp("strangers")
    tiny_lm(d_vocab=128).save(folder / "lm")
    (folder / "text.txt").write_text("".join(chr(32 + (7 * i * i + i // 9) % 90) for i in range(600)))
    up, down = random_sae(16, 24, 4, 1), random_sae(16, 20, 4, 2)
    save_sae(up, SaeCard.of(up, "topk", "topk", UP, {}), folder / "own")
    export(list(find_saes(folder / "own")), "saelens", folder / "lens", model="tiny")
    trainer = folder / "resid_post_layer_0" / "trainer_7"
    write_json(trainer / "config.json", {"trainer": {"dict_class": "BatchTopKSAE", "k": 4, "layer": 0}})
    tensors = {"encoder.weight": down.W_enc.T, "encoder.bias": down.b_enc + down.b_dec @ down.W_enc, "k": 4}
    torch.save(
        tensors | {"decoder.weight": down.W_dec.T, "b_dec": down.b_dec, "threshold": torch.tensor(0.3)},
        trainer / "ae.pt",
    )
    return folder, up, down


def scored(folder: Path, out: Path, *saes: str) -> Record:
    options = [option for source in saes for option in ("--saes", source)]
    text = ["--lm", str(folder / "lm"), "--tokens", str(folder / "text.txt"), "--context", "12"]
    numbers = ["--prompts", "3", "--rank-prompts", "2", "--out", str(out)]
    scalar("score", *options, "--block", "ff_block.0", *text, *numbers)
    (record,) = Results.read(out).records
    return record


def test_two_ends_of_two_formats(strangers: tuple[Path, SAE, SAE], tmp_path: Path):
    folder, up, down = strangers
    lens, trainer = folder / "lens", folder / "resid_post_layer_0" / "trainer_7"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    record = scored(folder, tmp_path / "a.json", str(lens), str(trainer))
    assert (record.method, record.block, record.n_edges) == ("topk+trainer_7", "ff_block.0", up.d_sae * down.d_sae)
    named = scored(folder, tmp_path / "b.json", f"mine=resid_mid.0={lens}", f"mine={trainer}")
    assert named.method == "mine"
    assert named.kl_model == record.kl_model, "the same pair under another name"
    placed = scored(folder, tmp_path / "c.json", f"resid_mid.0={lens}", f"resid_post.0={trainer}")
    assert placed.kl_model == record.kl_model
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_more_than_one_way_to_put_them_together_is_an_error(strangers: tuple[Path, SAE, SAE]):
    folder, _, _ = strangers
    saes = [
        "--saes",
        str(folder / "lens"),
        "--saes",
        f"other={folder / 'lens'}",
        "--saes",
        str(folder / "resid_post_layer_0"),
    ]
    refused = scalar("score", *saes, "--lm", folder / "lm", "--block", "ff_block.0", check=False)
    assert "several SAEs at resid_mid.0 (topk, other)" in refused.stderr
    with pytest.raises(UserError, match=r"several SAEs named topk at resid_mid.0; .* NAME="):
        load_saes(folder / "lens", folder / "lens")


def test_two_language_models_are_not_taken_for_one(strangers: tuple[Path, SAE, SAE], tmp_path: Path):
    folder, up, _ = strangers
    for seed, name in enumerate(("a", "b", "c")):
        tiny_lm(seed // 2, d_vocab=128).save(tmp_path / name / "lm")
        site = UP if seed == 0 else DOWN
        save_sae(up, SaeCard.of(up, "topk", name, site, {}), tmp_path / name / "saes" / name / str(site))
    options = ["--block", "ff_block.0", "--tokens", str(folder / "text.txt"), "--context", "12", "--prompts", "2"]
    options += ["--rank-prompts", "2"]
    scalar("score", "--saes", tmp_path / "a", "--saes", tmp_path / "b", *options)
    refused = scalar("score", "--saes", tmp_path / "a", "--saes", tmp_path / "c", *options, check=False)
    assert "are two language models; name the one that the SAEs read with --lm" in refused.stderr
