"""`hf://` paths against a Hub on localhost."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch

from scalar_sae.errors import UserError
from scalar_sae.records.results import Results
from scalar_sae.saes import hub
from scalar_sae.saes.store import SaeCard, find_saes, load_saes, save_sae
from scalar_sae.sites import Site
from tests.helpers import random_sae
from tests.report.test_page import record
from tests.saes.formats.hub_server import Hub, hub_on_localhost
from tests.test_study import scalar

PEERS = Path(__file__).parent / "peers"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    shutil.copytree(PEERS / "sparsify", tmp_path / "hub" / "someone" / "saes" / "run")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with hub_on_localhost(tmp_path / "hub") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def test_a_folder_of_a_repository_and_no_more_is_downloaded_once(server: Hub):
    saes = load_saes("hf://someone/saes/run/h.2")["topk"]
    here = load_saes(PEERS / "sparsify" / "h.2")["topk"]
    assert torch.equal(saes[Site("resid_post", 2)].W_enc, here[Site("resid_post", 2)].W_enc)
    assert {name for name, _ in server.downloads} == {"cfg.json", "sae.safetensors"}
    assert len(server.downloads) == 2
    load_saes("hf://someone/saes/run/h.2/")
    load_saes("hf://someone/saes@main/run/h.2")
    assert len(server.downloads) == 2, "the second time from the cache"


def test_one_file_and_a_whole_repository(server: Hub):
    shutil.copytree(PEERS / "dictionary_learning", server.root / "someone" / "dictionaries")
    assert len(list(find_saes("hf://someone/saes"))) == 3
    assert hub.local("hf://someone/dictionaries/BatchTopKSAE/ae.pt").is_file()


def test_a_connection_that_breaks_leaves_no_half_file(server: Hub):
    server.break_after = 600
    sae = server.root / "someone" / "saes" / "run" / "h.2" / "sae.safetensors"
    found = hub.local("hf://someone/saes/run/h.2")
    assert (found / "sae.safetensors").read_bytes() == sae.read_bytes()
    assert len(server.downloads) == 3, "the broken file was asked for again"


def test_refusals_say_what_to_do(server: Hub, tmp_path: Path):
    server.gated.add("google/gemma")
    for path, message in {
        "hf://google/gemma": "gated; accept its terms at http://127.0.0.1:.*/google/gemma",
        "hf://someone/else": "no such repository, or a private one",
        "hf://someone/saes@v2": "has no revision v2",
        "hf://someone/saes/run/h.7": "someone/saes holds no run/h.7",
        "hf://someone": "expected hf://owner/repository",
        "hf://some one/x": "Repo id",
    }.items():
        with pytest.raises(UserError, match=message):
            load_saes(path)
    done = scalar("ls", "hf://someone/else", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot be downloaded"):
        load_saes("hf://someone/saes")
    with pytest.raises(UserError, match=r"me/mine: cannot be published \(.*\); `hf auth login`"):
        hub.upload(tmp_path, "me/mine", private=True)


def test_push_then_pull(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What `push` uploads, put on the server's disk by a stand-in for the upload, comes back by `pull`."""

    class Api:
        def __init__(self, endpoint: str) -> None:
            assert endpoint == server.url

        def create_repo(self, repository: str, private: bool, exist_ok: bool) -> None:
            assert exist_ok
            assert private

        def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
            shutil.copytree(folder_path, server.root / repo_id)

    monkeypatch.setattr(hub, "HfApi", Api)
    run = tmp_path / "run"
    sae = random_sae(4, 8, 3, 0)
    for site in (Site("resid_mid", 0), Site("resid_post", 0)):
        save_sae(sae, SaeCard.of(sae, "topk", "topk", site, {"seed": 7}), run / "saes" / "topk" / str(site))
    Results(records=[record("ff_block.0", "topk", "leave_one_out_with_prior", 8, 12.0, 3.0)]).write(
        run / "results.json"
    )
    scalar("push", run, "me/mine", "--private")
    card = (server.root / "me" / "mine" / "README.md").read_text()
    assert 'load_saes("hf://me/mine")' in card
    assert "| topk | resid_post.0 | 4 | 8 | TopK 3 |" in card
    assert '"seed": 7' in card
    assert "| ff_block.0 | topk | leave_one_out_with_prior | 12 | 0.50 | 0.10 | 12 |" in card
    scalar("pull", "hf://me/mine", "--out", tmp_path / "back")
    back = load_saes(tmp_path / "back")["topk"]
    assert torch.equal(back[Site("resid_mid", 0)].W_dec, sae.W_dec)
    assert list(back) == list(load_saes("hf://me/mine")["topk"])
