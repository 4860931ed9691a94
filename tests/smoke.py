"""Every verb once, in a few seconds each, with the libraries that are installed: python -m tests.smoke

It needs `pip install 'scalar-sae[data,gguf]'` and no network. Trackers are tried where they are installed. `make
lowest` runs it under the lowest versions that pyproject.toml declares, `make newest` under the newest that there are.
"""

import _thread
import json
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.request
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import torch
import yaml
from typer.main import get_group

from scalar_sae import LanguageModel, Site
from scalar_sae.cli import app, main
from scalar_sae.records.results import Results
from scalar_sae.saes import hub
from scalar_sae.training.trackers import TRACKERS
from tests.lm.families import family_hf
from tests.lm.gguf_files import digits_tokenizer, small_llama, write_gguf
from tests.saes.formats.hub_server import hub_on_localhost

SAES = [{"method": "topk", "sites": ["ff_blocks"], "expansion": 1, "k": 4},
        {"method": "staircase", "along": "ff_blocks", "expansion": 1, "k": 4}]  # fmt: skip
with socket.socket() as _free:  # CI runs this twice at the same time
    _free.bind(("127.0.0.1", 0))
    PORT = _free.getsockname()[1]
tried: dict[str, float] = {}


def scalar(verb: str, *arguments: object) -> None:
    """The command, as a user gives it."""
    start = time.perf_counter()
    with mock.patch.object(sys, "argv", ["scalar", verb, *map(str, arguments)]):
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
    tried[verb] = tried.get(verb, 0) + time.perf_counter() - start


class Guesser(BaseHTTPRequestHandler):
    """A judge that has no idea."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        content = json.dumps({"choices": [{"message": {"content": "1, 0"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def post_in_a_browsers_place(path: str, content: dict[str, object]) -> None:
    """Post once to the server of a page, then end it as Ctrl-C does."""
    address = f"http://127.0.0.1:{PORT}/token/{path}"
    for _ in range(600):
        time.sleep(0.1)
        try:
            body, kind = json.dumps(content).encode(), {"Content-Type": "application/json"}
            request = urllib.request.Request(address, body, kind)
            urllib.request.urlopen(request, timeout=5).close()
        except OSError:
            continue
        break
    _thread.interrupt_main()


def models(root: Path) -> None:
    """Three families and a GGUF file are understood: what is computed stretch by stretch is the model's own output."""
    tokens = torch.arange(33).view(3, 11) * 5 % 64
    write_gguf(root / "small.gguf", small_llama(), digits_tokenizer())
    loaded = {name: LanguageModel(family_hf(name), name) for name in ("gpt2", "pythia", "llama")}
    for name, lm in (loaded | {"gguf": LanguageModel.load(root / "small.gguf")}).items():
        own = lm.hf(tokens, use_cache=False).logits
        site = Site("resid_post", 0)
        state = lm.states(tokens, [site])[site]
        spliced = lm.logits_from(site, state.x, state.skip)
        assert torch.equal(lm.logits(tokens), own), f"{name}: other logits than transformers"
        assert torch.equal(spliced, own), f"{name}: other logits from the residual stream"


def verbs(root: Path) -> None:
    text, run = root / "text.txt", root / "run"
    words = ("def", "f(x):", "return", "[y", "for", "z", "in", "(2,", "33)", "if", "'abc']", "\n", "Quartz", "~", "&&")
    text.write_text(" ".join(random.Random(0).choices(words, k=20_000)))
    small = ("steps=6", "warmup_steps=2", "eval_every=6", "batch_size=4", "context=32", "d_model=16", "n_layers=2")
    scalar("train-lm", "--out", root / "lm", *(word for one in (f"corpus={text}", *small) for word in ("--set", one)))
    train = {"lm": str(root / "lm"), "corpus": str(text), "tokens": 2048, "batch_tokens": 256, "buffer_tokens": 1024,
             "context": 32, "warmup_steps": 1, "saes": SAES}  # fmt: skip
    score = {
        "rankings": {"leave_one_out_with_prior": 1, "published": 1, "local": 1, "random": 1},
        "prompts": 2,
        "context": 16,
    }
    (root / "small.yaml").write_text(yaml.safe_dump({"train": train, "score": score}))
    scalar("quickstart", "--preset", root / "small.yaml", "--out", run)
    trackers = [word for name in TRACKERS if find_spec(name) for word in ("--log", name)]
    again = ("--out", root / "other", "--set", "seed=1", "--cache", root / "activations", *trackers)
    scalar("train", root / "small.yaml", *again)
    on_text = ("--tokens", text, "--prompts", 2, "--context", 16)
    scalar("score", "--saes", run, "--block", "ff_block.0", *on_text, "--rank-prompts", 1, "--out", root / "one.json")
    along = ("--sites", "resid_mid.0,resid_post.0,resid_post.1")
    scalar("circuit", "--saes", run, "--method", "topk", *along, *on_text, "--rank-prompts", 1)
    scalar("compare", run)
    scalar("measure", run, "--against", root / "other", "--tokens", text, "--prompts", 16, "--context", 32)
    scalar("features", run, "--method", "topk", "--tokens", text, "--prompts", 64, "--context", 32)
    site = run / "features" / "topk" / "resid_mid.0"
    with ThreadingHTTPServer(("127.0.0.1", 0), Guesser) as judge:
        threading.Thread(target=judge.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{judge.server_port}/v1"
        scalar("judge", site, "--url", url, "--model", "m", "--latents", 1)
        judge.shutdown()
    answer = ("answer", {"pair": 0, "choice": "left"})
    threading.Thread(target=post_in_a_browsers_place, args=answer, daemon=True).start()
    two = [run / "saes" / name / "resid_mid.0" for name in ("topk", "staircase")]
    with mock.patch("secrets.token_urlsafe", return_value="token"):
        scalar("blind", *two, "--out", root / "blind", "--tokens", text, "--prompts", 32, "--pairs", 1, "--port", PORT)
    scalar("blind", "--out", root / "blind", "--summary")
    about = {"pair": "topk/ff_block.0", "ranking": "leave_one_out_with_prior"}
    question = ("ask/recovery", {**about, "text": "def", "edges": [[0, 0]]})
    threading.Thread(target=post_in_a_browsers_place, args=question, daemon=True).start()
    with mock.patch("secrets.token_urlsafe", return_value="token"):
        scalar("explore", run, "--port", PORT)
    scalar("report", run)
    scalar("ls", run)
    scalar("export", run, "--out", root / "saelens", "--format", "saelens", "--method", "topk")

    def upload(folder: Path, repository: str, private: bool) -> str:
        shutil.copytree(folder, root / "hub" / repository)
        return f"hf://{repository}"

    with hub_on_localhost(root / "hub") as server, mock.patch.dict("os.environ", {"HF_ENDPOINT": server.url}):
        with mock.patch.object(hub, "upload", upload):
            scalar("push", run, "me/mine")
        scalar("pull", "hf://me/mine", "--out", root / "back")
    assert len(Results.read(run / "results.json").records) >= 16
    assert "<svg" in (run / "report.html").read_text()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts this in the background ignores it
    torch.set_num_threads(1)
    warnings.simplefilter("default")
    names = get_group(app).commands
    for name in names:
        scalar(name, "--help")
    tried.clear()
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("huggingface_hub.constants.HF_HUB_CACHE", f"{folder}/cache"),
        mock.patch.dict("os.environ", {"SCALAR_SAE_CACHE": f"{folder}/cache", "WANDB_MODE": "offline"}),
    ):
        models(Path(folder))
        verbs(Path(folder))
    untried = set(names) - set(tried)
    assert not untried, f"add to this test: {', '.join(untried)}"
    sys.stdout.write("".join(f"{verb}: {seconds:.1f} s\n" for verb, seconds in tried.items()))
