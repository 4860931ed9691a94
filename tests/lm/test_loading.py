"""Loading from folders and the Hub (a local stand-in), and every way in which that fails."""

import http.server
import shutil
import threading
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch

from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.saes.store import SaeCard, save_sae
from scalar_sae.sites import Site
from tests.helpers import random_sae
from tests.lm.families import family_lm
from tests.test_study import scalar
from tests.test_tokenizer import with_bos

TOKENS = torch.arange(22).view(2, 11)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with a tokenizer, as transformers saves one."""
    folder = tmp_path_factory.mktemp("lm") / "llama"
    LanguageModel.load(family_lm("llama").hf, tokenizer=with_bos()).save(folder)
    return folder


def test_a_folder_reads_back(folder: Path):
    lm = LanguageModel.load(folder)
    assert torch.equal(lm.logits(TOKENS), family_lm("llama").logits(TOKENS))
    assert lm.name == str(folder)
    half = LanguageModel.load(folder, dtype=torch.bfloat16, device="cpu")
    assert half.hf.dtype == torch.bfloat16


def test_the_command_line_scores_a_foreign_model_on_text_in_its_own_tokens(folder: Path, tmp_path: Path):
    for seed, site in enumerate(("resid_mid.1", "resid_post.1")):
        sae = random_sae(16, 20, 4, seed)
        save_sae(sae, SaeCard.of(sae, "topk", "topk", Site.parse(site), {}), tmp_path / "saes" / "topk" / site)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog " * 100)
    done = scalar(
        "score", "--lm", folder, "--saes", tmp_path / "saes", "--block", "ff_block.1", "--context", "12",
        "--tokens", tmp_path / "text.txt", "--prompts", "2", "--rank-prompts", "1", "--edges", "1,20",
        "--out", tmp_path / "out.json",
    )  # fmt: skip
    assert "ff_block.1" in done.stdout
    assert (tmp_path / "out.json").is_file()


def test_damaged_folders(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut: cannot be loaded as a causal language model \(.*\)$"):
        LanguageModel.load(tmp_path / "cut")
    weights.unlink()
    with pytest.raises(UserError, match=r"cut: cannot be loaded as a causal language model \(.*no file named"):
        LanguageModel.load(tmp_path / "cut")
    (tmp_path / "cut" / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(UserError, match="no-such-model"):
        LanguageModel.load(tmp_path / "cut")
    (tmp_path / "cut" / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        LanguageModel.load(tmp_path / "cut")
    (tmp_path / "cut" / "config.json").unlink()
    with pytest.raises(UserError, match=r"cut: no config.json there"):
        LanguageModel.load(tmp_path / "cut")
    with pytest.raises(UserError, match=r"unknown language model '.*nowhere': expected one of .* a Hub id"):
        LanguageModel.load(tmp_path / "nowhere")


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the Hub does for a gated and for an absent repository."""

    def do_HEAD(self):
        code, error = (403, "GatedRepo") if "gated" in self.path else (404, "RepoNotFound")
        self.send_response(code)
        self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *args):
        pass


def point_to(address: str, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """What HF_ENDPOINT does, which is read only once."""
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        point_to(f"http://127.0.0.1:{server.server_port}", monkeypatch, tmp_path)
        yield
        server.shutdown()


def test_the_hub_says_no(hub: None):
    with pytest.raises(UserError, match=r"owner/gated: a gated repository; ask for access .* hf auth login$"):
        LanguageModel.load("owner/gated")
    with pytest.raises(UserError, match=r"owner/absent: neither a local folder nor a repository on the Hub"):
        LanguageModel.load("owner/absent")


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    point_to("http://127.0.0.1:9", monkeypatch, tmp_path)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts
    with pytest.raises(UserError, match=r"owner/model: cannot be loaded .*connect"):
        LanguageModel.load("owner/model")
