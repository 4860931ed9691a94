"""Train a small language model: `scalar train-lm`.

The recipe of the authors' code (SCALAR's toy model; their paper prints neither recipe nor loss): AdamW, weight decay on
matrices only, cosine learning rate with warm-up, gradient clipping, random windows of the training text. Differences:
float32 throughout where they used bf16 autocast. The batch of a step follows from (seed, step) alone, so a run that was
killed goes on from its last checkpoint and ends with the same bytes.
"""

import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import GPT2LMHeadModel

from scalar_sae.console import Bar, say
from scalar_sae.corpora import Corpus, Texts, load_texts, tokenized, windows
from scalar_sae.errors import UserError
from scalar_sae.io import Events, whole, write_json
from scalar_sae.lm.loading import Origin, load_tokenizer
from scalar_sae.lm.toy import toy_gpt
from scalar_sae.tokenizer import Ascii, Pretrained, Tokenizer, byte_pairs
from scalar_sae.versions import versions

TOKENIZER = "tokenizer"
UNFINISHED = {"checkpoint.pt", "events.jsonl", TOKENIZER}
"""What a run leaves that was stopped."""


class LmRecipe(BaseModel):
    """What a small GPT-2 is and how it is trained; the defaults are the paper's toy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str = "python-stdlib"
    """A text's name, a path, or hf://owner/name:configuration@split#column; see docs/text.md."""
    steps: int = Field(default=10_000, gt=0)
    """Optimiser steps."""
    batch_size: int = Field(default=128, gt=0)
    """Sequences per step."""
    context: int = Field(default=128, gt=1)
    """Tokens per sequence; the model reads as many, but never fewer than 128."""
    d_vocab: int = Field(default=128, ge=128)
    """128: ASCII codes. More: so many byte pairs, learned from the training text."""
    d_model: int = Field(default=64, gt=0)
    """Width of the residual stream."""
    n_layers: int = Field(default=4, gt=0)
    n_heads: int = Field(default=4, gt=0)
    lr: float = Field(default=1e-3, gt=0)
    """Highest learning rate."""
    min_lr: float = Field(default=1e-5, ge=0)
    """Learning rate at the end of the cosine."""
    warmup_steps: int = Field(default=1_000, ge=0)
    """Steps of linear warm-up."""
    beta2: float = Field(default=0.95, gt=0, lt=1)
    """Adam's second-moment decay."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Weight decay on tensors of two or more dimensions."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    seed: int = 0
    """Seed of the initial weights and of the batches."""
    eval_every: int = Field(default=250, gt=0)
    """Steps between validation losses and checkpoints."""


RECIPES = {
    "python-stdlib": LmRecipe(corpus="python-stdlib", steps=2_000, lr=2e-3, min_lr=2e-5, warmup_steps=200),
    "tiny-shakespeare": LmRecipe(corpus="tiny-shakespeare"),
    "medium": LmRecipe(
        corpus="python-docs", steps=2_000, batch_size=16, context=256, d_vocab=4096, d_model=256, n_layers=5,
        warmup_steps=200, eval_every=100,
    ),
}  # fmt: skip
"""How the shipped weights were made: a short recipe for the default corpus, the authors' own for theirs. `medium` is
real language: 5 million parameters, byte pairs, the standard library's documentation and what `--data` adds."""


def learning_rate(recipe: LmRecipe, step: int) -> float:
    """Linear warm-up, then a cosine from `lr` to `min_lr`."""
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / (recipe.warmup_steps + 1)
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (recipe.lr - recipe.min_lr)


def batch_of(tokens: Integer[Tensor, " n"], recipe: LmRecipe, step: int) -> Int[Tensor, "batch context_and_next"]:
    """The random windows of a step, one token longer than the context; depends on (seed, step) alone."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    starts = torch.randint(tokens.numel() - recipe.context, (recipe.batch_size, 1), generator=generator)
    return tokens[starts + torch.arange(recipe.context + 1)].long()


def next_token_loss(lm: GPT2LMHeadModel, ids: Int[Tensor, "batch context_and_next"]) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of each token but the first of every window."""
    ids = ids.to(lm.device)
    logits = lm(ids[:, :-1]).logits
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def validation_loss(lm: GPT2LMHeadModel, val: Integer[Tensor, " n"], context: int, most: int | None = None) -> float:
    """Cross-entropy in nats per token over the validation text in windows that do not overlap (the first `most`)."""
    ids = windows(val[1:], context, "validation text")[:most]
    inputs = windows(val[:-1], context, "validation text")[:most]
    total = 0.0
    for x, y in zip(inputs.split(64), ids.split(64), strict=True):
        logits = lm(x.to(lm.device)).logits.flatten(0, 1)
        total += F.cross_entropy(logits, y.flatten().to(lm.device), reduction="sum").item()
    return total / ids.numel()


def train_lm(recipe: LmRecipe, out: Path, *data: Path) -> dict[str, Any]:
    """Train a small GPT-2 and write it to `out` as a Hugging Face folder with `training.json` beside it.

    Continues bit-exactly from `out/checkpoint.pt` where that is left from a run of the same recipe on the same text.

    Returns:
        What `training.json` holds: recipe, data, loss curve, final validation loss in nats and bits, versions.

    Raises:
        UserError: `out` holds another model or another run's checkpoint, or the text is too short.
    """
    if (out / "training.json").exists():
        raise UserError(f"{out}: already holds a trained model; choose another --out or remove it")
    if out.exists() and (not out.is_dir() or {path.name for path in out.glob("[!.]*")} - UNFINISHED):
        raise UserError(f"{out}: holds other files; choose another --out")
    texts = load_texts(recipe.corpus, *data)
    tokenizer = _vocabulary(recipe, texts, out)
    corpus = tokenized(texts, tokenizer)
    windows(corpus.val[1:], recipe.context, f"{recipe.corpus}, validation part")
    for remark in corpus.remarks(recipe.context):
        say(remark)
    state = _start(recipe, out / "checkpoint.pt", corpus)
    if not isinstance(tokenizer, Pretrained):
        shutil.rmtree(out / TOKENIZER, ignore_errors=True)  # of another recipe, stopped before its first checkpoint
    elif not (state.step and (out / TOKENIZER).is_dir()):
        with whole(out / TOKENIZER) as temporary:
            tokenizer.save(temporary)
    events = Events(out / "events.jsonl")
    with Bar("train-lm", recipe.steps, done=state.step) as bar:
        while state.step < recipe.steps:
            loss = state.advance(corpus.train)
            bar.step(note=f"loss {loss:.3f}, {state.speed:,.0f} tokens/s" if state.step % 10 == 0 else None)
            if state.step % recipe.eval_every == 0 or state.step == recipe.steps:
                val = validation_loss(state.lm, corpus.val, recipe.context, most=256)
                state.curve.append({"step": state.step, "train": round(loss, 4), "val": round(val, 4)})
                events("train-lm", **state.curve[-1])
                state.save(out / "checkpoint.pt")
                say(state.progress())
    return _finish(state, corpus, len(tokenizer.decode(corpus.val.tolist()).encode()), out)


def _vocabulary(recipe: LmRecipe, texts: Texts, out: Path) -> Tokenizer:
    """ASCII codes, or byte pairs: learned from the training text, or those of the run that is gone on with."""
    if recipe.d_vocab == Ascii().d_vocab:
        return Ascii()
    if (out / "checkpoint.pt").exists() and (out / TOKENIZER).is_dir():
        return load_tokenizer(Origin(str(out / TOKENIZER)), "byte pairs", recipe.d_vocab)
    with Bar("learn byte pairs"):
        return byte_pairs(texts.train, recipe.d_vocab)


class _State:
    """Everything that a run needs to go on."""

    def __init__(self, recipe: LmRecipe, data: dict[str, str | int]) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.data = data
        sizes = recipe.model_dump(include={"d_vocab", "d_model", "n_layers", "n_heads"})
        # on a CPU eager is the faster one at the toy's context of 128, sdpa at 256
        attention = "eager" if recipe.context <= 128 else "sdpa"
        self.lm = toy_gpt(attention=attention, context=max(128, recipe.context), **sizes)
        torch.nn.Module.to(self.lm, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        groups = [
            {"params": [p for p in self.lm.parameters() if p.dim() >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in self.lm.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, recipe.beta2), fused=True)
        self.step = 0
        self.seconds = 0.0
        self.curve: list[dict[str, float]] = []

    def advance(self, tokens: Integer[Tensor, " n"]) -> float:
        """One optimiser step; returns its training loss in nats."""
        start = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step)
        loss = next_token_loss(self.lm, batch_of(tokens, self.recipe, self.step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.lm.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.seconds += time.perf_counter() - start
        return loss.item()

    @property
    def speed(self) -> float:
        """Training tokens per second, over all sittings."""
        return self.step * self.recipe.batch_size * self.recipe.context / self.seconds

    def progress(self) -> str:
        """One line: how far, how good, how fast."""
        now, left = self.curve[-1], (self.recipe.steps - self.step) * self.seconds / self.step / 60
        return (
            f"step {self.step:,}: train {now['train']:.3f}, val {now['val']:.3f} nats; "
            f"{self.speed:,.0f} tokens/s, {left:.0f} min left"
        )

    def save(self, path: Path) -> None:
        with whole(path) as temporary:
            torch.save(
                {
                    "recipe": self.recipe.model_dump(),
                    "data": self.data,
                    "lm": self.lm.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "step": self.step,
                    "seconds": self.seconds,
                    "curve": self.curve,
                },
                temporary,
            )

    def load(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        there = saved.get("recipe", {})
        differing = [key for key, value in self.recipe.model_dump().items() if there.get(key) != value]
        differing = differing or ["--data"] * (saved.get("data") != self.data)
        if differing:
            raise UserError(f"{path}: left by a run that differs in {', '.join(differing)}; choose another --out")
        self.lm.load_state_dict(saved["lm"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.seconds, self.curve = saved["step"], saved["seconds"], saved["curve"]


def _start(recipe: LmRecipe, checkpoint: Path, corpus: Corpus) -> _State:
    if corpus.train.numel() <= recipe.context:
        raise UserError(f"{recipe.corpus}: {corpus.train.numel()} training tokens are fewer than one context and one")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    state = _State(recipe, corpus.describe())
    if checkpoint.exists():
        state.load(checkpoint)
    return state


def _finish(state: _State, corpus: Corpus, val_bytes: int, out: Path) -> dict[str, Any]:
    with Bar("validate"):
        nats = validation_loss(state.lm, corpus.val, state.recipe.context)
    record = {
        "recipe": state.recipe.model_dump(),
        "data": corpus.describe(),
        "parameters": sum(p.numel() for p in state.lm.parameters()),
        "val_loss_nats": round(nats, 5),
        "val_loss_bits": round(nats / math.log(2), 5),
        "val_bits_per_byte": round(nats / math.log(2) * corpus.val.numel() / val_bytes, 5),
        "train_seconds": round(state.seconds),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "curve": state.curve,
    }
    with whole(out / "model") as temporary:
        state.lm.save_pretrained(temporary)
        if (out / TOKENIZER).is_dir():
            shutil.copytree(out / TOKENIZER, temporary, dirs_exist_ok=True)
    for path in (out / "model").iterdir():
        path.replace(out / path.name)
    (out / "model").rmdir()
    write_json(out / "training.json", record)
    (out / "checkpoint.pt").unlink(missing_ok=True)
    shutil.rmtree(out / TOKENIZER, ignore_errors=True)
    return record
