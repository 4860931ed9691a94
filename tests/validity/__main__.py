"""The tables of docs/validity.md.

python -m tests.validity                                   planted circuits, rankings, ladders and nonsense
python -m tests.validity planted ladders ablation=mean     some of them, with other settings of `ScoreConfig`
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from scalar_sae.records.results import Record
from scalar_sae.scoring.rankings.registry import EDGEWISE, rank
from tests.validity.circuits import DENSITIES, N_FEATURES, Planted, orthonormal, superposed
from tests.validity.readings import LEVELS, found_among, headline, improvements, permuted_labels, said, scored
from tests.validity.worse import dictionaries, ladders

RANKINGS = [*(name for name in EDGEWISE if name != "random"), "leave_one_out_with_prior", "random"]


def circuits() -> dict[str, Callable[[int], Planted]]:
    """Every kind of planted circuit, by the density of its edges."""
    kinds = {f"{kind}, superposed": partial(superposed, kind) for kind in N_FEATURES}
    return {"ReLU MLP, orthonormal": orthonormal, **kinds}


def row(*cells: object) -> None:
    print("|", " | ".join(str(cell) for cell in cells), "|", flush=True)


def heading(*cells: object) -> None:
    print()
    row(*cells)
    row(*["---"] * len(cells))


def headlines(record: Record) -> list[str]:
    return [said(record.faithful_at[level]) for level in LEVELS]


def planted(**changes: str) -> None:
    """Do the true dictionaries need the planted number of edges, and worse ones more?"""
    for kind, make in circuits().items():
        for per_latent in DENSITIES:
            circuit = make(per_latent)
            columns = [f"faithful@{level}" for level in LEVELS]
            print(f"\n**{kind}: {circuit.n_edges} planted edges, {per_latent} into each latent**")
            heading("dictionaries", *columns, "floor (nats)", "edges@90 of their own recovery")
            records = {name: scored(pair, circuit.texts, **changes) for name, pair in dictionaries(circuit).items()}
            for name, record in records.items():
                row(name, *headlines(record), f"{abs(record.floor.kl):.2f}", said(record.edges_at["90"]))
            print(f"\nThe downstream site set to its mean: {records['the true ones'].kl_mean:.2f} nats.")


def constant(**changes: str) -> None:
    """Does a latent that is always active cost edges?"""
    circuit = superposed("relu", 3, with_constant=True)
    print(f"\n**ReLU MLP in superposition with a constant: {circuit.n_edges} planted edges**")
    heading("ablation", "the constant is in", *(f"faithful@{level}" for level in LEVELS))
    for ablation in ("zero", "mean"):
        for where, pair in (("the decoder's bias", circuit.pair()), ("a latent", circuit.with_constant_latent())):
            row(ablation, where, *headlines(scored(pair, circuit.texts, edges="coarse", ablation=ablation)))


def rankings(**changes: str) -> None:
    """How many of the planted edges come first?"""
    heading("circuit", "edges into a latent", *RANKINGS)
    for kind, make in circuits().items():
        for per_latent in DENSITIES:
            circuit = make(per_latent)
            n = circuit.n_edges
            shares = [
                found_among(rank(circuit.pair(), circuit.texts.ranking, name, 0), circuit, n) / n for name in RANKINGS
            ]
            row(kind, per_latent, *(f"{share:.2f}" for share in shares))


def ladder_tables(**changes: str) -> None:
    """Does the headline get worse with the SAEs?"""
    for kind, make in circuits().items():
        print(f"\n**{kind}, 3 edges into each latent**")
        heading("ladder", "step", *(f"faithful@{level}" for level in LEVELS), "floor (nats)")
        circuit = make(3)
        for ladder, steps in ladders(circuit.pair()).items():
            records = [scored(pair, circuit.texts, **changes) for pair in steps.values()]
            for name, record in zip(steps, records, strict=True):
                row(ladder, name, *headlines(record), f"{abs(record.floor.kl):.2f}")
            for step, level, before, after in improvements(records):
                print(f"NOT MONOTONE: {ladder}, step {step}, faithful@{level}: {said(before)} to {said(after)}")


def nonsense(**changes: str) -> None:
    """Does the score say that nonsense is nonsense?"""
    heading("circuit", "level", "the true pair", "labels permuted", "random order", "random SAEs", "shuffled weights")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "permuted.npy"
        for kind, make in circuits().items():
            circuit = make(3)
            pair, texts = circuit.pair(), circuit.texts
            np.save(path, permuted_labels(rank(pair, texts.ranking, "leave_one_out_with_prior", 0)).numpy())
            columns = [
                scored(pair, texts, **changes),
                scored(pair, texts, ranking=str(path), **changes),
                scored(pair, texts, ranking="random", **changes),
                scored(dictionaries(circuit)["random directions at both ends"], texts, **changes),
                scored(pair, texts, control="shuffled", **changes),
            ]
            for level in LEVELS:
                row(kind, f"faithful@{level}", *(said(headline(record, level)) for record in columns))


TABLES = {
    "planted": planted,
    "constant": constant,
    "rankings": rankings,
    "ladders": ladder_tables,
    "nonsense": nonsense,
}


def main(arguments: list[str]) -> None:
    changes = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    for name in [argument for argument in arguments if "=" not in argument] or TABLES:
        TABLES[name](**changes)


if __name__ == "__main__":
    main(sys.argv[1:])
