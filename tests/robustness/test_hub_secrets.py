"""Repositories of strangers: what is downloaded, where it lands, which commit it was; what is published of a run."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from scalar_sae.errors import UserError
from scalar_sae.records.results import Results
from scalar_sae.report.publication import stage
from scalar_sae.saes import hub
from scalar_sae.saes.export import export
from scalar_sae.saes.store import SaeCard, find_saes, load_sae, load_saes, save_sae
from scalar_sae.scoring.config import ScoreConfig
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.score import score
from scalar_sae.scoring.texts import Texts
from scalar_sae.sites import Block, Site
from tests.helpers import random_sae, tiny_lm
from tests.report.test_page import record
from tests.robustness.test_judge_secrets import KEY
from tests.saes.formats.hub_server import SHA, Hub, hub_on_localhost

PEERS = Path(__file__).parents[1] / "saes" / "formats" / "peers"
SECRETS = ("/home/ann", "C:\\\\Users", KEY, "pass")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    expected = shutil.ignore_patterns("*.expected.safetensors")
    shutil.copytree(PEERS / "sparsify", tmp_path / "hub" / "someone" / "saes" / "run", ignore=expected)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with hub_on_localhost(tmp_path / "hub") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.mark.parametrize(
    "inside", ["../../../etc", "run/../../..", "run/h.2/../../../../x", "..", "run/..", "../models--someone--saes"]
)
def test_an_address_cannot_lead_out_of_its_repository(inside: str, server: Hub):
    with pytest.raises(UserError, match="leads out of the repository"):
        hub.local(f"hf://someone/saes/{inside}")
    assert server.downloads == []


@pytest.mark.parametrize("path", ["../../../evil.json", "run/h.2/../../../../../evil.json", "/tmp/scalar-evil.json"])
def test_a_listing_cannot_lead_out_of_the_cache(path: str, server: Hub, tmp_path: Path):
    server.listed.append(path)
    before = {entry for entry in tmp_path.rglob("*") if "cache" not in entry.parts}
    with contextlib.suppress(UserError):
        hub.local("hf://someone/saes")
    assert {entry for entry in tmp_path.rglob("*") if "cache" not in entry.parts} == before
    assert not Path("/tmp/scalar-evil.json").exists()
    assert list((tmp_path / "cache").rglob("evil.json")) == []


def test_nothing_is_downloaded_that_no_format_reads(server: Hub):
    """Scripts, optimiser states under foreign names, pictures, other frameworks' weights."""
    folder = server.root / "someone" / "saes"
    for name in ("modeling.py", "run/train.py", "logs/events.out", "a.png", "run/h.2/tf_model.h5", "run/h.2/x.ckpt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    hub.local("hf://someone/saes")
    hub.local("hf://someone/saes/run/h.2")
    assert {name for name, _ in server.downloads} == {"cfg.json", "sae.safetensors"}


@pytest.mark.parametrize("token", ["hf_abc\x01secret", "hf_abc secret", "hf_ébcsecret"])
def test_a_token_that_no_header_can_hold_is_not_said(token: str, server: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", token)
    said = ""
    try:
        hub.local("hf://someone/saes/run/h.2")
    except UserError as error:
        said = str(error)
    assert "secret" not in said
    assert "\n" not in said


def test_an_address_of_the_hub_with_a_password_is_not_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://ann:verysecret@127.0.0.1:9")
    for call in (lambda: hub.local("hf://someone/saes"), lambda: hub.upload(tmp_path, "me/mine", private=True)):
        with pytest.raises(UserError) as refused:
            call()
        assert "verysecret" not in str(refused.value)


def test_records_and_cards_name_the_commit(server: Hub, tmp_path: Path):
    """Also when the address names a branch or nothing."""
    sae = random_sae(16, 24, 3, 0)
    for site in (Site("resid_mid", 0), Site("resid_post", 0)):
        save_sae(sae, SaeCard.of(sae, "topk", "topk", site, {}), server.root / "me" / "mine" / "topk" / str(site))
    saes = load_saes("hf://me/mine/topk")["topk"]
    addresses = [f"hf://me/mine@{SHA}/topk/resid_{kind}.0" for kind in ("mid", "post")]
    assert [sae.address for _, sae in sorted(saes.items())] == addresses
    pair = Pair.between(tiny_lm(), Block.parse("ff_block.0"), saes)
    tokens = tiny_prompts()
    config = ScoreConfig(ranking="random", rank_prompts=1, prompts=2, context=8, edges="1,10")
    found = score(pair, Texts(tokens[:1], tokens[1:], {}), config, method="topk")
    assert found.config["saes"] == addresses
    export(find_saes("hf://me/mine"), "scalar", tmp_path / "out")
    card = load_sae(tmp_path / "out" / "topk" / "resid_mid.0")[1]
    assert card.recipe["source"] == addresses[0]
    assert load_saes(tmp_path / "out")["topk"][Site("resid_mid", 0)].address is None


def tiny_prompts():
    import torch

    return torch.randint(0, 32, (3, 8), generator=torch.Generator().manual_seed(0))


def test_what_is_published_names_no_place_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    sae = random_sae(4, 8, 3, 0)
    recipe = {"config": {"lm": "/home/ann/runs/lm", "corpus": "C:\\Users\\ann\\text.txt", "key": KEY}, "seed": 7}
    save_sae(sae, SaeCard.of(sae, "topk", "topk", Site("resid_mid", 0), recipe), tmp_path / "saes" / "topk" / "x")
    one = record("ff_block.0", "topk", "/home/ann/scores/mine.npy", 8, 12.0, 3.0)
    data = {**one.data, "corpus": "/home/ann/text.txt", "url": "https://ann:pass@host/v1?key=abc"}
    one = one.model_copy(update={"config": {**one.config, "lm": "/home/ann/runs/lm"}, "data": data})
    located = list(find_saes(tmp_path / "saes"))
    stage(tmp_path / "out", "me/mine", located, Results(records=[one]))
    texts = {path: path.read_text() for path in (tmp_path / "out").rglob("*") if path.suffix in (".json", ".md")}
    assert len(texts) == 3
    for path, text in texts.items():
        assert not any(secret in text for secret in SECRETS), path
    back = Results.read(tmp_path / "out" / "results.json").records[0]
    assert (back.ranking, back.config["lm"], back.data["url"]) == ("mine.npy", "lm", "https://host/v1")
    card = json.loads((tmp_path / "out" / "topk" / "resid_mid.0" / "sae.json").read_text())
    assert card["recipe"] == {"config": {"lm": "lm", "corpus": "text.txt", "key": "<OPENAI_API_KEY>"}, "seed": 7}
    assert one.ranking.startswith("/home/ann"), "what is here stays as it is"
    other = one.model_copy(update={"ranking": "/home/ann/other/mine.npy"})
    with pytest.raises(UserError, match="two records have these names"):
        stage(tmp_path / "again", "me/mine", located, Results(records=[one, other]))
    assert not (tmp_path / "again").exists()
