"""Language-model training: the recipe, and going on after a kill."""

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from scalar_sae.corpora import load_corpus
from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.toy import toy_gpt
from scalar_sae.lm.train import RECIPES, LmRecipe, batch_of, learning_rate, train_lm, validation_loss
from scalar_sae.tokenizer import Ascii
from tests.forks import Forks

SMALL: dict[str, Any] = {"steps": 12, "batch_size": 2, "context": 16, "warmup_steps": 2, "eval_every": 3}


def small_recipe(text: Path, **changes: Any) -> LmRecipe:
    values: dict[str, Any] = {"corpus": str(text), **SMALL, **changes}
    return LmRecipe(**values)


def work(*_: object) -> None:
    """What must not be begun."""
    raise AssertionError("work was begun")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 200)
    return path


def test_the_schedule_warms_up_and_ends_at_the_minimum():
    recipe = LmRecipe()
    rates = [learning_rate(recipe, step) for step in range(recipe.steps + 1)]
    assert max(rates) == rates[1000] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-5)
    assert rates[:1000] == sorted(rates[:1000])
    assert rates[1000:] == sorted(rates[1000:], reverse=True)


def test_the_shakespeare_recipe_is_the_authors():
    recipe = RECIPES["tiny-shakespeare"]
    assert recipe.steps == 10_000
    assert recipe.batch_size * recipe.context == 16_384
    assert (recipe.lr, recipe.min_lr, recipe.warmup_steps) == (1e-3, 1e-5, 1_000)
    assert (recipe.beta2, recipe.weight_decay, recipe.clip) == (0.95, 0.1, 1.0)


def test_a_batch_depends_on_seed_and_step_alone():
    tokens = torch.randint(0, 128, (500,), dtype=torch.uint8)
    recipe = LmRecipe(**SMALL)
    assert torch.equal(batch_of(tokens, recipe, 3), batch_of(tokens, recipe, 3))
    assert not torch.equal(batch_of(tokens, recipe, 3), batch_of(tokens, recipe, 4))
    assert batch_of(tokens, recipe, 0).shape == (2, 17)


def test_training_lowers_the_loss_and_says_what_it_did(text: Path, tmp_path: Path):
    record = train_lm(small_recipe(text, steps=40, lr=1e-2), tmp_path / "lm")
    assert record["curve"][-1]["val"] < record["curve"][0]["val"] < 5
    assert json.loads((tmp_path / "lm" / "training.json").read_text()) == record
    assert not (tmp_path / "lm" / "checkpoint.pt").exists()
    with pytest.raises(UserError, match=r"training\.json: of a run that differs \(lr: 0\.01 here, 0\.001 asked; steps"):
        train_lm(LmRecipe(corpus=str(text), **SMALL), tmp_path / "lm")


KILLED = """
import os, signal, sys; from pathlib import Path
from scalar_sae.lm import train
advance, recipe, folder = train.State.advance, train.LmRecipe(**eval(sys.argv[1])), Path(sys.argv[2])
def until_8(state, tokens):
    if state.step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return advance(state, tokens)
if sys.argv[3:] == ["killed"]:
    train.State.advance = until_8
for name in sys.argv[3:]:
    train.train_lm(recipe, folder / name)
"""


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(text: Path, tmp_path: Path, forks: Forks):
    """Killed two steps behind a checkpoint."""
    recipe: dict[str, Any] = {**SMALL, "corpus": str(text), "d_model": 16, "n_layers": 2}
    (killed,) = forks.ends(KILLED, recipe, tmp_path, "killed")
    assert killed.code == -signal.SIGKILL
    assert (tmp_path / "killed" / "checkpoint.pt").exists()
    assert not (tmp_path / "killed" / "training.json").exists()
    forks.run(KILLED, recipe, tmp_path, "whole", "killed")
    whole, resumed = (tmp_path / name / "model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == resumed.read_bytes()


def test_another_recipes_checkpoint_is_refused(text: Path, tmp_path: Path):
    recipe = LmRecipe(corpus=str(text), **SMALL)
    from scalar_sae.lm import train as module

    state = module.State(recipe, load_corpus(str(text), Ascii()).describe())
    (tmp_path / "lm").mkdir()
    state.save(tmp_path / "lm" / "checkpoint.pt")
    with pytest.raises(
        UserError, match=r"differs \(lr: 0\.001 here, 0\.5 asked; seed: 0 here, 1 asked\); choose another"
    ):
        train_lm(recipe.model_copy(update={"lr": 0.5, "seed": 1}), tmp_path / "lm")
    text.write_text("another text under the same name. " * 200)
    with pytest.raises(UserError, match=r"differs \(--data\); choose another"):
        train_lm(recipe, tmp_path / "lm")


def test_a_short_text_is_refused(tmp_path: Path):
    (tmp_path / "short.txt").write_text("too short " * 30)
    with pytest.raises(UserError, match="fewer than one context"):
        train_lm(small_recipe(tmp_path / "short.txt", context=128), tmp_path / "lm")
    assert not (tmp_path / "lm").exists()


def test_a_medium_model_learns_its_own_vocabulary(text: Path, tmp_path: Path):
    sizes = {"context": 160, "d_vocab": 300, "d_model": 32, "n_layers": 1}
    small: dict[str, Any] = {"steps": 2, "batch_size": 2, "eval_every": 2, **sizes}
    record = train_lm(LmRecipe(corpus=str(text), **small), tmp_path / "lm")
    lm = LanguageModel.load(tmp_path / "lm")
    assert (lm.d_vocab, lm.d_model, lm.n_layers, lm.context) == (300, 32, 1, 160)
    ids, _ = lm.tokenizer.encode("the quick brown fox")
    assert len(ids) < 10
    assert lm.tokenizer.decode(ids.tolist()) == "the quick brown fox"
    corpus = load_corpus(str(text), lm)
    assert corpus.fingerprint == record["data"]["fingerprint"]
    n_bytes = len(lm.tokenizer.decode(corpus.val.tolist()).encode())
    total = validation_loss(lm.hf, corpus.val, 160) * len(corpus.val)
    assert record["val_bits_per_byte"] == pytest.approx(total / math.log(2) / n_bytes, abs=1e-4)


def test_a_stopped_run_goes_on_with_its_own_vocabulary(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from scalar_sae.lm import train as module

    small: dict[str, Any] = {**SMALL, "corpus": str(text), "d_vocab": 300, "d_model": 32, "n_layers": 1}
    train_lm(LmRecipe(**small), tmp_path / "whole")
    advance, learned = module.State.advance, list[object]()

    def until_7(state: module.State, tokens: torch.Tensor) -> float:
        if state.step == 7:
            raise KeyboardInterrupt
        return advance(state, tokens)

    with monkeypatch.context() as patched:
        patched.setattr(module.State, "advance", until_7)
        with pytest.raises(KeyboardInterrupt):
            train_lm(LmRecipe(**small), tmp_path / "stopped")
    monkeypatch.setattr(module, "byte_pairs", learned.append)
    train_lm(LmRecipe(**small), tmp_path / "stopped")
    assert not learned
    files = [{path.name: path.read_bytes() for path in (tmp_path / run).iterdir()} for run in ("whole", "stopped")]
    assert files[0].keys() == files[1].keys()
    assert "tokenizer.json" in files[0]
    differing = {name for name in files[0] if files[0][name] != files[1][name]}
    assert differing <= {"training.json", "events.jsonl"}, "but for times, the same bytes"


def test_the_medium_recipe_has_five_million_parameters():
    sizes = RECIPES["medium"].model_dump(include={"d_vocab", "d_model", "n_layers", "n_heads", "context"})
    assert sum(p.numel() for p in toy_gpt(**sizes).parameters()) == pytest.approx(5e6, rel=0.05)


def test_a_finished_model_is_found_and_checked(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same command again trains nothing; a changed bit of what it wrote is found."""
    from scalar_sae.lm import train as module

    out = tmp_path / "lm"
    small: dict[str, Any] = {**SMALL, "corpus": str(text), "d_vocab": 300, "d_model": 32, "n_layers": 1}
    record = train_lm(LmRecipe(**small), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for name in ("State", "byte_pairs"):
        monkeypatch.setattr(module, name, work)
    (out / "checkpoint.pt").touch()  # killed before it was removed
    assert train_lm(LmRecipe(**small), out) == record
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    whole = text.read_text()
    text.write_text("another text under the same name. " * 200)
    with pytest.raises(UserError, match=r"training\.json: of a run that differs \(--data\)"):
        train_lm(LmRecipe(**small), out)
    text.write_text(whole)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "sha256.json", "training.json"):
        damaged = bytearray(before[name])
        damaged[len(damaged) // 2] ^= 4
        (out / name).write_bytes(damaged)
        with pytest.raises(
            UserError, match=name.replace(".", r"\.") if name != "sha256.json" else "damaged|sha256|cannot be read"
        ):
            train_lm(LmRecipe(**small), out)
        assert (out / name).read_bytes() == damaged
        (out / name).write_bytes(before[name])


def test_a_model_that_was_half_put_in_place_is_finished(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed while the files of the finished model were moved to their places."""
    from scalar_sae.lm import train as module

    recipe = LmRecipe(corpus=str(text), **SMALL)
    expected = train_lm(recipe, tmp_path / "whole")

    def killed(out: Path) -> None:
        (out / "model" / "model.safetensors").replace(out / "model.safetensors")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_put_in_place", killed)
        with pytest.raises(KeyboardInterrupt):
            train_lm(recipe, tmp_path / "lm")
    assert (tmp_path / "lm" / "model.safetensors").exists()
    found = train_lm(recipe, tmp_path / "lm")
    assert found["val_loss_nats"] == expected["val_loss_nats"]
    assert {path.name for path in (tmp_path / "lm").iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}


@pytest.mark.parametrize("content", [b"", b"zeros" * 100, None])
def test_a_damaged_checkpoint_is_refused_and_stays(content: bytes | None, text: Path, tmp_path: Path):
    from scalar_sae.lm import train as module

    recipe, path = LmRecipe(corpus=str(text), **SMALL), tmp_path / "lm" / "checkpoint.pt"
    path.parent.mkdir()
    module.State(recipe, load_corpus(str(text), Ascii()).describe()).save(path)
    damaged = bytearray(path.read_bytes() if content is None else content)
    if content is None:
        damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"checkpoint\.pt: not a checkpoint of a language model \(damaged [^\n]+; move"):
        train_lm(recipe, tmp_path / "lm")
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"d_vocab": 10**7, "batch_size": 10**5}, "d_vocab = 10000000, .*at least [0-9,]+ GB of memory, this machine"),
        ({"n_layers": 2**24, "d_model": 2**12}, "n_layers = 16777216, .*at least [0-9,]+ GB of memory, this machine"),
        ({"context": 2**24}, "context = 16777216: .*at least [0-9,]+ GB of memory, this machine"),
    ],
)
def test_a_model_that_no_machine_can_train_is_refused_at_once(
    changes: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("scalar_sae.lm.train.load_texts", work)
    with pytest.raises(UserError, match=said):
        train_lm(LmRecipe(**changes), tmp_path / "lm")


def test_a_loss_that_is_no_number_ends_the_training(text: Path, tmp_path: Path):
    recipe = small_recipe(text, lr=1e6, warmup_steps=0, clip=1e6, steps=200)
    with pytest.raises(UserError, match=r"step [0-9]+: the loss is (nan|inf); lower lr = 1e\+06"):
        train_lm(recipe, tmp_path / "lm")
    assert not (tmp_path / "lm" / "training.json").exists()
