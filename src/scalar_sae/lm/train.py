"""Train a small language model: `scalar train-lm`.

The recipe is that of the SCALAR authors' code for their toy model; their paper prints neither recipe nor loss. It uses
AdamW, weight decay on matrices only, a cosine learning rate with warm-up, gradient clipping, and random windows of the
training text. One thing differs: all computation is in float32, where the authors used bf16 autocast. The batch of a
step depends only on (seed, step). A run that was killed resumes from its last checkpoint and ends with the same bytes.
"""

import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from transformers import GPT2LMHeadModel

from scalar_sae.bounds import Address, Count, Rate, Seed, Size
from scalar_sae.console import Bar, say
from scalar_sae.corpora import Corpus, Texts, load_texts, tokenized, windows
from scalar_sae.errors import UserError
from scalar_sae.io import Events, atomic_write, differences, write_json
from scalar_sae.lm.loading import Origin, load_tokenizer
from scalar_sae.lm.toy import toy_gpt
from scalar_sae.locks import held
from scalar_sae.readers import WRITER, read_json
from scalar_sae.sealed import check_sealed, load_checkpoint, save_checkpoint, seal
from scalar_sae.tokenizer import Ascii, Pretrained, Tokenizer, byte_pairs
from scalar_sae.versions import versions

TOKENIZER, RECORD = "tokenizer", "training.json"
UNFINISHED = {"checkpoint.pt", "events.jsonl", "model", TOKENIZER}
"""Files that an interrupted run leaves behind."""
KEEP = "move the folder away and run the same command to train again"


class LmRecipe(BaseModel):
    """A small GPT-2 and how to train it. The defaults are the paper's toy model."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    corpus: Address = "python-stdlib"
    """The text: a shipped name, a path, or hf://owner/name:configuration@split#column; see docs/text.md."""
    steps: Count = 10_000
    """Optimiser steps."""
    batch_size: Size = 128
    """Sequences per step."""
    context: Size = Field(default=128, gt=1)
    """Tokens per sequence. The model reads prompts of up to this length, or 128 if that is more."""
    d_vocab: Size = Field(default=128, ge=128)
    """Vocabulary size. 128 means ASCII codes; more means that many byte pairs, learned from the training text."""
    d_model: Size = 64
    """Width of the residual stream."""
    n_layers: Size = 4
    n_heads: Size = 4
    lr: Rate = 1e-3
    """Peak learning rate."""
    min_lr: float = Field(default=1e-5, ge=0, le=1e6)
    """Final learning rate of the cosine schedule."""
    warmup_steps: int = Field(default=1_000, ge=0, le=10**12)
    """Steps of linear warm-up."""
    beta2: float = Field(default=0.95, gt=0, lt=1)
    """Adam's second-moment decay."""
    weight_decay: float = Field(default=0.1, ge=0, le=1e6)
    """Weight decay on tensors of two or more dimensions."""
    clip: Rate = 1.0
    """Maximum gradient norm."""
    seed: Seed = 0
    """Seed of the initial weights and of the batches."""
    eval_every: Count = 250
    """Steps between validation losses and checkpoints."""

    @model_validator(mode="after")
    def _consistent(self) -> "LmRecipe":
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model = {self.d_model} is not a multiple of n_heads = {self.n_heads}")
        return self

    @property
    def least_bytes(self) -> int:
        """Minimum memory of training in bytes: weights, gradients, moments, logits, and the activations that each layer
        keeps.
        """
        parameters = self.d_model * (self.d_vocab + max(128, self.context) + 12 * self.n_layers * self.d_model)
        return 16 * parameters + 4 * self.batch_size * self.context * (self.d_vocab + 8 * self.n_layers * self.d_model)


class LmRecord(BaseModel):
    """The content of `training.json` for a trained model."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    recipe: LmRecipe
    data: dict[str, Any]
    parameters: int
    val_loss_nats: float
    val_loss_bits: float
    val_bits_per_byte: float
    """The two fields above are per token."""
    train_seconds: int
    threads: int
    versions: dict[str, Any]
    curve: list[dict[str, int | float]]
    format_version: int = 1
    written_by: str = WRITER


RECIPES = {
    "python-stdlib": LmRecipe(corpus="python-stdlib", steps=2_000, lr=2e-3, min_lr=2e-5, warmup_steps=200),
    "tiny-shakespeare": LmRecipe(corpus="tiny-shakespeare"),
    "medium": LmRecipe(
        corpus="python-docs", steps=2_000, batch_size=16, context=256, d_vocab=4096, d_model=256, n_layers=5,
        warmup_steps=200, eval_every=100,
    ),
}  # fmt: skip
"""The recipes of the shipped weights: a short one for the default corpus, and the authors' own for theirs. `medium` is
real language: 5 million parameters and byte pairs, trained on the standard library's documentation and the files of
`--data`."""


def learning_rate(recipe: LmRecipe, step: int) -> float:
    """Linear warm-up, then a cosine from `lr` to `min_lr`."""
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / (recipe.warmup_steps + 1)
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (recipe.lr - recipe.min_lr)


def batch_of(tokens: Integer[Tensor, " n"], recipe: LmRecipe, step: int) -> Int[Tensor, "batch context_and_next"]:
    """The random windows of a step, one token longer than the context. They depend only on (seed, step)."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    starts = torch.randint(tokens.numel() - recipe.context, (recipe.batch_size, 1), generator=generator)
    return tokens[starts + torch.arange(recipe.context + 1)].long()


def next_token_loss(lm: GPT2LMHeadModel, ids: Int[Tensor, "batch context_and_next"]) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of all tokens but the first of every window."""
    ids = ids.to(lm.device)
    logits = lm(ids[:, :-1]).logits
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def validation_loss(lm: GPT2LMHeadModel, val: Integer[Tensor, " n"], context: int, most: int | None = None) -> float:
    """Cross-entropy in nats per token over the validation text, in windows that do not overlap (the first `most` of
    them).
    """
    ids = windows(val[1:], context, "validation text")[:most]
    inputs = windows(val[:-1], context, "validation text")[:most]
    total = 0.0
    for x, y in zip(inputs.split(64), ids.split(64), strict=True):
        logits = lm(x.to(lm.device)).logits.flatten(0, 1)
        total += F.cross_entropy(logits, y.flatten().to(lm.device), reduction="sum").item()
    return total / ids.numel()


def train_lm(recipe: LmRecipe, out: Path, *data: Path) -> dict[str, Any]:
    """Train a small GPT-2 and write it to `out` as a Hugging Face folder with `training.json` beside it.

    Resumes bit-exactly from `out/checkpoint.pt` if a run of the same recipe on the same text left one. If `out` already
    holds the finished model of that recipe and text, it is kept and its record returned.

    Returns:
        The content of `training.json`: recipe, data, loss curve, final validation loss in nats and bits, versions.

    Raises:
        UserError: `out` holds another model, another run's checkpoint or a damaged one; the text is too short; the
            machine has too little memory; or the loss is no longer finite.
    """
    _check_memory(recipe)
    with held(out, remedy="wait until it ends, or choose another --out"):
        return _train(recipe, out, *data)


def _train(recipe: LmRecipe, out: Path, *data: Path) -> dict[str, Any]:
    there = _finished(out, recipe)
    begun = os.path.lexists(out / "checkpoint.pt")
    if there is None and not begun and {path.name for path in out.glob("[!.]*")} - UNFINISHED:
        raise UserError(f"{out}: holds other files; choose another --out")
    texts = load_texts(recipe.corpus, *data)
    tokenizer = _vocabulary(recipe, texts, out if there else out / TOKENIZER, known=begun or there is not None)
    corpus = tokenized(texts, tokenizer)
    if there is not None:
        _check_same(out / RECORD, there.recipe.model_dump(), there.data, recipe, corpus.describe())
        _clear(out)
        say(f"{out}: trained already; move it away, or choose another --out, to train again")
        return there.model_dump(mode="json")
    windows(corpus.val[1:], recipe.context, f"{recipe.corpus}, validation part")
    for remark in corpus.remarks(recipe.context):
        say(remark)
    state = _start(recipe, out / "checkpoint.pt", corpus)
    if not isinstance(tokenizer, Pretrained):
        # left by another recipe that stopped before its first checkpoint
        shutil.rmtree(out / TOKENIZER, ignore_errors=True)
    elif not (state.step and (out / TOKENIZER).is_dir()):
        with atomic_write(out / TOKENIZER) as temporary:
            tokenizer.save(temporary)
    events = Events(out / "events.jsonl")
    with Bar("train-lm", recipe.steps, done=state.step) as bar:
        while state.step < recipe.steps:
            loss = state.advance(corpus.train)
            if not math.isfinite(loss):
                raise UserError(
                    f"step {state.step}: the loss is {loss}; lower lr = {recipe.lr:g}, or raise warmup_steps"
                )
            bar.step(note=f"loss {loss:.3f}, {state.speed:,.0f} tokens/s" if state.step % 10 == 0 else None)
            if state.step % recipe.eval_every == 0 or state.step == recipe.steps:
                val = validation_loss(state.lm, corpus.val, recipe.context, most=256)
                state.curve.append({"step": state.step, "train": round(loss, 4), "val": round(val, 4)})
                events("train-lm", **state.curve[-1])
                state.save(out / "checkpoint.pt")
                say(state.progress())
    return _finish(state, corpus, len(tokenizer.decode(corpus.val.tolist()).encode()), out)


def _check_memory(recipe: LmRecipe) -> None:
    """Raise a UserError if a model is too large to be trained on this machine."""
    if torch.cuda.is_available():
        there = torch.cuda.get_device_properties(0).total_memory
    elif hasattr(os, "sysconf"):
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return
    if recipe.least_bytes > there:
        raise UserError(
            f"recipe: d_vocab = {recipe.d_vocab}, d_model = {recipe.d_model}, n_layers = {recipe.n_layers}, batch_size "
            f"= {recipe.batch_size}, context = {recipe.context}: training takes at least "
            f"{recipe.least_bytes / 1e9:,.0f} GB of memory, this machine has {there / 1e9:,.0f}; lower one of them"
        )


def _finished(out: Path, recipe: LmRecipe) -> LmRecord | None:
    """The record of the finished model in a folder, if it is complete and of this recipe.

    Raises:
        UserError: it is damaged, or of another recipe.
    """
    path = out / RECORD
    if not os.path.lexists(path):
        return None
    found = read_json(path, LmRecord, "no longer there; run the command again")
    _check_same(path, found.recipe.model_dump(), found.data, recipe, found.data)
    check_sealed(out, KEEP)
    return found


def _check_same(
    path: Path, recipe: dict[str, Any], data: dict[str, Any], asked: LmRecipe, text: dict[str, Any]
) -> None:
    """Raise a UserError if a file belongs to another recipe or text than requested."""
    differing = differences(recipe, asked.model_dump()) or (["--data"] if data != text else [])
    if differing:
        raise UserError(f"{path}: of a run that differs ({'; '.join(differing)}); choose another --out")


def _vocabulary(recipe: LmRecipe, texts: Texts, folder: Path, *, known: bool) -> Tokenizer:
    """ASCII codes, or byte pairs. The byte pairs are read from a folder if `known`, else learned from the training
    text.
    """
    if recipe.d_vocab == Ascii().d_vocab:
        return Ascii()
    if known and folder.is_dir():
        return load_tokenizer(Origin(str(folder)), "byte pairs", recipe.d_vocab)
    with Bar("learn byte pairs"):
        return byte_pairs(texts.train, recipe.d_vocab)


class State:
    """The state of a run, with everything that resuming needs."""

    def __init__(self, recipe: LmRecipe, data: dict[str, Any]) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.data = data
        sizes = recipe.model_dump(include={"d_vocab", "d_model", "n_layers", "n_heads"})
        # on a CPU, eager is faster at the toy's context of 128, and sdpa at 256
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
        """Take one optimiser step. Returns its training loss in nats."""
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
        """Training tokens per second, over all sessions."""
        return self.step * self.recipe.batch_size * self.recipe.context / self.seconds

    def progress(self) -> str:
        """One line on progress, loss and speed."""
        now, left = self.curve[-1], (self.recipe.steps - self.step) * self.seconds / self.step / 60
        return (
            f"step {self.step:,}: train {now['train']:.3f}, val {now['val']:.3f} nats; "
            f"{self.speed:,.0f} tokens/s, {left:.0f} min left"
        )

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        with atomic_write(path) as temporary:
            save_checkpoint(
                temporary,
                {
                    "recipe": self.recipe.model_dump(),
                    "data": self.data,
                    "lm": self.lm.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "step": self.step,
                    "seconds": self.seconds,
                    "curve": self.curve,
                },
            )

    def load(self, path: Path) -> None:
        """Restore the state from a checkpoint.

        Raises:
            UserError: it is damaged, or of another recipe or text.
        """
        saved = load_checkpoint(path, self.lm.device, "a checkpoint of a language model", KEEP)
        if "recipe" not in saved:
            raise UserError(f"{path}: not a checkpoint of a language model; {KEEP}")
        _check_same(path, saved["recipe"], saved["data"], self.recipe, self.data)
        self.lm.load_state_dict(saved["lm"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.seconds, self.curve = saved["step"], saved["seconds"], saved["curve"]


def _start(recipe: LmRecipe, checkpoint: Path, corpus: Corpus) -> State:
    if corpus.train.numel() <= recipe.context:
        raise UserError(f"{recipe.corpus}: {corpus.train.numel()} training tokens are fewer than one context and one")
    state = State(recipe, corpus.describe())
    if os.path.lexists(checkpoint):
        state.load(checkpoint)
    return state


def _finish(state: State, corpus: Corpus, val_bytes: int, out: Path) -> dict[str, Any]:
    with Bar("validate"):
        nats = validation_loss(state.lm, corpus.val, state.recipe.context)
    record = LmRecord(
        recipe=state.recipe,
        data=corpus.describe(),
        parameters=sum(p.numel() for p in state.lm.parameters()),
        val_loss_nats=round(nats, 5),
        val_loss_bits=round(nats / math.log(2), 5),
        val_bits_per_byte=round(nats / math.log(2) * corpus.val.numel() / val_bytes, 5),
        train_seconds=round(state.seconds),
        threads=torch.get_num_threads(),
        versions=versions(),
        curve=state.curve,
    ).model_dump(mode="json")
    with atomic_write(out / "model") as temporary:
        state.lm.save_pretrained(temporary)
        if (out / TOKENIZER).is_dir():
            shutil.copytree(out / TOKENIZER, temporary, dirs_exist_ok=True)
        write_json(temporary / RECORD, record)
        seal(temporary, *(path.name for path in temporary.iterdir()))
    _put_in_place(out)
    _clear(out)
    return record


def _put_in_place(out: Path) -> None:
    """Move the files of a finished model into place, the record last, since its presence marks the model as
    finished.
    """
    for path in sorted((out / "model").iterdir(), key=lambda path: path.name == RECORD):
        path.replace(out / path.name)


def _clear(out: Path) -> None:
    """Remove the files that a finished model does not need."""
    (out / "checkpoint.pt").unlink(missing_ok=True)
    shutil.rmtree(out / "model", ignore_errors=True)
    shutil.rmtree(out / TOKENIZER, ignore_errors=True)
