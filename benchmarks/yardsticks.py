"""Do this package's methods reconstruct as well as the same methods of SAELens and dictionary_learning?

    .peers/bin/python -m benchmarks.yardsticks --out runs/yardsticks     # where the peers are installed: make bench

Every trainer reads the same activations of one site in the same batches. Ours trains once, with the recipe of the
preset `table`. The peers' own trainers train once with each of three learning rates, with a warm-up and a linear decay
over the last fifth, and the best of the three counts. L0 is matched: one controller steers the weight of a penalty to
the same L0, for the peers too. FVU and L0 are measured on validation text with the SAE of inference. Each run becomes a
line of `yardsticks.jsonl` in the output folder. Runs that are there already are not repeated.
"""

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scalar_sae.activations.stream import ActivationStream, read_all
from scalar_sae.corpora import load_corpus, windows
from scalar_sae.lm.model import LanguageModel
from scalar_sae.saes.components.sparsity_control import Sparsity, SparsityWeight
from scalar_sae.saes.methods.base import Progress
from scalar_sae.saes.trained import L0_TOLERANCE
from scalar_sae.sites import Site
from scalar_sae.training.config import TrainConfig, read_preset, validated
from scalar_sae.training.learner import learners
from scalar_sae.training.loop import text_to_choose_on

SITE = Site("resid_mid", 1)
K, EXPANSION = 10, 8
LRS = (3e-3, 9e-3, 3e-2)
WARMUP = 50
METHODS = ("topk", "topk-gao", "topk-auxk", "batch_topk", "jumprelu", "gated", "relu")
OTHERS = {"topk-auxk": "zoo"}
"""Methods that another preset than `table` has, with that preset."""
OURS, LENS, DICTIONARY = "scalar-sae", "SAELens", "dictionary_learning"


class Data(NamedTuple):
    """Activations at the site."""

    config: TrainConfig
    lm: LanguageModel
    batches: list[Tensor]
    held_out: Tensor

    def scaled(self, norm: float) -> "Data":
        """The same with E‖x‖² = norm²."""
        factor = norm * torch.cat(self.batches[:64]).square().sum(-1).mean().rsqrt()
        return self._replace(batches=[x * factor for x in self.batches], held_out=self.held_out * factor)

    @property
    def steps(self) -> int:
        return len(self.batches)

    @property
    def d_model(self) -> int:
        return self.held_out.shape[1]


class Trained(NamedTuple):
    """A finished SAE."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def read(config: TrainConfig) -> Data:
    """The batches that `scalar train` would make, and the validation text."""
    lm = LanguageModel.load(config.lm)
    corpus = load_corpus(config.corpus, lm, n_train=config.tokens)
    special = lm.special_ids(config.special)
    prompts = windows(corpus.train, config.context, corpus.name, corpus.start)
    stream = ActivationStream(lm, prompts, [SITE], config.buffer_tokens, config.seed, special=special)
    batches: list[Tensor] = []
    for buffer in stream.buffers():
        batches += [x for x in buffer[SITE].split(config.batch_tokens) if len(x) == config.batch_tokens]
        if len(batches) >= config.steps:
            break
    held_out = read_all(lm, text_to_choose_on(corpus, config.context), [SITE], special)[SITE]
    return Data(config, lm, batches[: config.steps], held_out.flatten(0, 1))


def ours(data: Data, name: str) -> Trained:
    """This package's method, as the preset `table` trains it."""
    [learner] = learners(data.config.model_copy(update={"saes": [at_the_site(data.config, name)]}), data.lm)
    learner.trainee.prepare({SITE: torch.cat(data.batches[:64])})
    for step, x in enumerate(data.batches):
        learner.step({SITE: x}, step)
    learner.trainee.calibrate({SITE: torch.cat(data.batches[-64:])})
    sae = learner.trainee.sae(SITE)
    return Trained(sae.encode, sae.decode)


def at_the_site(config: TrainConfig, name: str) -> Any:
    """A method of the preset, or of another one, at this site alone."""
    if name in OTHERS:
        config = validated(TrainConfig, read_preset(OTHERS[name])["train"], "train")
    [method] = [method for method in config.saes if method.name == name]
    return method.model_copy(update={"sites": [str(SITE)]})


def lens(data: Data, name: str, lr: float) -> Trained:
    """SAELens' trainer, on activations with a mean norm of about √d_model, as it normalises them."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes import batchtopk_sae, gated_sae, jumprelu_sae, standard_sae, topk_sae
    from sae_lens.training.sae_trainer import SAETrainer

    data = data.scaled(data.d_model**0.5)
    size = {"d_in": data.d_model, "d_sae": EXPANSION * data.d_model}
    sae: Any = {
        "topk": lambda: topk_sae.TopKTrainingSAE(topk_sae.TopKTrainingSAEConfig(k=K, **size)),
        "batch_topk": lambda: batchtopk_sae.BatchTopKTrainingSAE(batchtopk_sae.BatchTopKTrainingSAEConfig(k=K, **size)),
        "jumprelu": lambda: jumprelu_sae.JumpReLUTrainingSAE(jumprelu_sae.JumpReLUTrainingSAEConfig(**size)),
        "gated": lambda: gated_sae.GatedTrainingSAE(gated_sae.GatedTrainingSAEConfig(**size)),
        "relu": lambda: standard_sae.StandardTrainingSAE(standard_sae.StandardTrainingSAEConfig(**size)),
    }[name]()
    batch = data.config.batch_tokens
    config = SAETrainerConfig(
        data.steps * batch, batch, lr=lr, lr_end=lr / 10, lr_warm_up_steps=WARMUP, lr_decay_steps=data.steps // 5,
        dead_feature_window=data.steps // 10,
    )  # fmt: skip
    trainer: Any = SAETrainer(config, sae, iter(()))
    weight, l0 = steered(), torch.tensor(float(K))
    for step, x in enumerate(data.batches):
        now = float(weight.at(Progress(step, data.steps), l0))
        for scheduler in trainer.coefficient_schedulers.values():
            scheduler.final_value = scheduler.current_value = now
        l0 = (trainer.step(x).feature_acts > 0).float().sum(1).mean()
        trainer.n_training_steps += 1

    def encode(x: Tensor) -> Tensor:
        if name != "batch_topk":
            return sae.encode(x)
        u = sae.encode_with_hidden_pre(x)[1]  # at inference it is a JumpReLU with this threshold
        return torch.where(u > sae.topk_threshold, u, 0.0).relu()

    return Trained(encode, sae.decode)


def dictionary_learning(data: Data, name: str, lr: float) -> Trained:
    """dictionary_learning's trainer, on activations with E‖x‖² = 1, as it normalises them."""
    from dictionary_learning.trainers import batch_top_k, gdm, jumprelu, standard, top_k

    data = data.scaled(1.0)
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "topk": (top_k.TopKTrainer, {"k": K}),
        "batch_topk": (
            batch_top_k.BatchTopKTrainer,
            {"k": K, "threshold_beta": 0.99, "threshold_start_step": data.steps // 2},  # its defaults need longer runs
        ),
        "jumprelu": (jumprelu.JumpReluTrainer, {"target_l0": K, "sparsity_warmup_steps": WARMUP}),
        "gated": (gdm.GatedSAETrainer, {"sparsity_warmup_steps": None}),
        "relu": (standard.StandardTrainerAprilUpdate, {"sparsity_warmup_steps": None}),
    }
    kind, options = kinds[name]
    trainer = kind(
        data.steps, data.d_model, EXPANSION * data.d_model, layer=0, lm_name="none", lr=lr, warmup_steps=WARMUP,
        decay_start=data.steps * 4 // 5, seed=0, device="cpu", **options,
    )  # fmt: skip
    trainer.dead_feature_threshold = data.config.tokens // 10  # as ours; its default is never reached
    weight = steered()
    for step, x in enumerate(data.batches):
        if hasattr(trainer, "l1_penalty"):
            with torch.no_grad():
                l0 = (trainer.ae.encode(x) > 0).float().sum(1).mean()
            trainer.l1_penalty = float(weight.at(Progress(step, data.steps), l0))
        trainer.update(step, x)
    return Trained(trainer.ae.encode, trainer.ae.decode)


def steered() -> SparsityWeight:
    """The controller of a peer's penalty: that of this package."""
    return SparsityWeight(Sparsity(weight=0.1, target_l0=K)).train()


@torch.no_grad()
def measured(sae: Trained, x: Tensor) -> dict[str, float]:
    """FVU, L0 and the share of latents that never fire."""
    acts = sae.encode(x)
    missed = (x - sae.decode(acts)).square().sum() / (x - x.mean(0)).square().sum()
    l0, dead = (acts > 0).float().sum(1).mean(), (acts > 0).sum(0).eq(0).float().mean()
    return {"fvu": missed.item(), "l0": l0.item(), "dead": dead.item()}


def run(data: Data, method: str, trainer: str, lr: float) -> dict[str, Any]:
    """One trainer's run."""
    torch.manual_seed(0)
    if trainer == OURS:
        found, x = ours(data, method), data.held_out
    elif trainer == LENS:
        found, x = lens(data, peers_name(method), lr), data.scaled(data.d_model**0.5).held_out
    else:
        found, x = dictionary_learning(data, peers_name(method), lr), data.scaled(1.0).held_out
    return {"method": method, "trainer": trainer, "lr": lr, **measured(found, x)}


def peers_name(method: str) -> str:
    """Every recipe of TopK is measured against the peers' TopK."""
    return method.partition("-")[0]


def table(rows: list[dict[str, Any]]) -> str:
    """Ours and the best run of each peer whose L0 is within a tenth of the target."""
    lines = ["| method | FVU | L0 | dead | SAELens: FVU | ours / theirs | dictionary_learning: FVU | ours / theirs |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name in METHODS:
        [own] = [row for row in rows if (row["method"], row["trainer"]) == (name, OURS)]
        cells = [name, f"{own['fvu']:.4f}", f"{own['l0']:.1f}", f"{own['dead']:.0%}"]
        for peer in (LENS, DICTIONARY):
            theirs = [row for row in rows if (row["method"], row["trainer"]) == (peers_name(name), peer)]
            theirs = [row["fvu"] for row in theirs if abs(row["l0"] - K) <= L0_TOLERANCE * K]
            cells += [f"{min(theirs):.4f}", f"{own['fvu'] / min(theirs):.2f}"] if theirs else ["misses L0", "–"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="FVU against SAELens and dictionary_learning.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    path = parser.parse_args().out / "yardsticks.jsonl"
    logging.disable(logging.WARNING)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    config = validated(TrainConfig, read_preset("table")["train"], "train")
    data = read(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    for method in METHODS:
        own = config.lr * at_the_site(config, method).lr_scale
        peers = (LENS, DICTIONARY) if method == peers_name(method) else ()
        for trainer, lr in [(OURS, own), *((peer, lr) for peer in peers for lr in LRS)]:
            if any((row["method"], row["trainer"], row["lr"]) == (method, trainer, lr) for row in rows):
                continue
            rows.append(run(data, method, trainer, lr))
            print(rows[-1], flush=True)
            with path.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
