"""Loading from folders and the Hub (a local stand-in), and every way in which that fails."""

import http.server
import json
import shutil
import threading
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM

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
    weights = family_lm("llama").hf.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in lm.hf.state_dict().items())
    torch.testing.assert_close(lm.logits(TOKENS), family_lm("llama").logits(TOKENS))  # they lie otherwise in memory
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
    (tmp_path / "empty.txt").touch()
    where = ("--lm", folder, "--saes", tmp_path / "saes", "--block", "ff_block.1", "--tokens", tmp_path / "empty.txt")
    done = scalar("score", *where, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_hidden_layers": 1},
            r"holds model\.layers\.1\..*, by its config it has 1 layers; one is",
        ),
        ({"num_hidden_layers": 9}, "weights are missing: "),
        ({"hidden_size": 32}, r"has shape \(.*16.*\), by its config \(.*32.*\); one is of another model"),
        ({"vocab_size": 7}, r"by its config \(7, 16\)"),
        ({"hidden_size": "abc"}, "cannot be loaded as a causal language model"),
        ({"num_attention_heads": 0}, "cannot be loaded as a causal language model"),
    ],
)
def test_a_config_that_contradicts_the_weights(folder: Path, tmp_path: Path, change: dict[str, object], message: str):
    copy = Path(shutil.copytree(folder, tmp_path / "lm"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        LanguageModel.load(copy)


def test_a_tokenizer_that_is_not_there_or_of_another_model(folder: Path, tmp_path: Path):
    copy = Path(shutil.copytree(folder, tmp_path / "lm"))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer beside the weights; save one there"):
        _ = LanguageModel.load(copy).tokenizer
    with pytest.raises(UserError, match=r"token 999: the vocabulary of .* another model's tokenizer"):
        LanguageModel.load(folder).logits(torch.tensor([[1, 999]]))


def test_an_architecture_whose_modules_have_known_names_only():
    config = GptOssConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        intermediate_size=16, num_local_experts=2, num_experts_per_tok=1, pad_token_id=None,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"gpt_oss is not an architecture that is understood .* in ten lines"):
        LanguageModel.load(GptOssForCausalLM(config))


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
    with pytest.raises(UserError, match=r"owner/model: cannot be loaded .*(connect|reach)"):
        LanguageModel.load("owner/model")
