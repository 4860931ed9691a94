"""The learning rate and the warm-up of every method, chosen on validation text at one token budget.

    python -m benchmarks.recipes --out runs/recipes
    python -m benchmarks.recipes --out runs/recipes --preset my.yaml

The preset (recipes.yaml) is a study's preset with one more section, `sweep`: values of some fields of a method. Every
method is trained once with each combination of them, all combinations in one run. A run that was stopped goes on. Each
combination becomes a row of `recipes.jsonl` in the output folder. The rows and the choices are printed as a table.

The combination with the least validation loss is chosen, among those whose L0 is within a tenth of the one asked for.
The loss is the FVU. Own losses of the methods are not comparable, since they contain penalties of different weights and
an auxiliary loss that depends on how many latents are dead. Jacobian SAEs are the exception: their term has a fixed
weight, so their own loss is what is compared.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from scalar_sae.io import write_text
from scalar_sae.readers import parse_yaml, read_text
from scalar_sae.saes.methods.jacobian import JacobianPenalty
from scalar_sae.saes.trained import L0_TOLERANCE
from scalar_sae.study import StudyConfig, train_run
from scalar_sae.training.config import LONGEST, TrainConfig, validated

PRESET = Path(__file__).with_suffix(".yaml")


class Row(NamedTuple):
    """One combination of a method, measured on validation text with the weights after the last step."""

    method: str
    fields: dict[str, Any]
    """The values of the swept fields."""
    lr: float
    """Peak learning rate."""
    l0: float
    fvu: float
    dead: float
    """Share of latents that never fire on the validation text."""
    ce_increase: float
    """Increase of the cross-entropy in nats when one SAE is spliced in."""
    loss: float
    """What is compared."""
    wanted_l0: float | None
    """The L0 that was asked for; None if the method fixes it."""

    @property
    def matched(self) -> bool:
        """Whether the L0 that was asked for is reached."""
        return self.wanted_l0 is None or abs(self.l0 - self.wanted_l0) <= L0_TOLERANCE * self.wanted_l0


def combinations(sweep: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the swept values."""
    for values in itertools.product(*sweep.values()):
        yield dict(zip(sweep, values, strict=True))


def swept(train: dict[str, Any], method: dict[str, Any], sweep: dict[str, list[Any]]) -> TrainConfig:
    """The run of one method with every combination."""
    name = method.get("name", method["method"])
    saes = [method | fields | {"name": named(name, fields)} for fields in combinations(sweep)]
    return validated(TrainConfig, train | {"saes": saes}, "train")


def named(name: str, fields: dict[str, Any]) -> str:
    """The name of a combination's SAEs."""
    return "-".join([name, *(f"{field}-{value}" for field, value in fields.items())])


def rows(name: str, config: TrainConfig, run: Path, sweep: dict[str, list[Any]]) -> Iterator[Row]:
    """A finished run's rows: means over the sites of each combination."""
    events = map(json.loads, filter(None, (run / "events.jsonl").read_text().splitlines()))
    last = {event["name"]: event for event in events if event["kind"] == "validate"}
    for method, fields in zip(config.saes, combinations(sweep), strict=True):
        saes = last[method.name]["saes"].values()
        mean = {key: fmean(sae[key] for sae in saes) for key in ("l0", "fvu", "dead", "ce_increase", "val_loss")}
        own_loss = mean.pop("val_loss")
        loss = own_loss if isinstance(method, JacobianPenalty) else mean["fvu"]
        yield Row(name, fields, config.lr * method.lr_scale, **mean, loss=loss, wanted_l0=method.wanted_l0(0))


def chosen(found: list[Row]) -> int | None:
    """The number of the row with the least loss; None if every row misses its L0."""
    return min((number for number, row in enumerate(found) if row.matched), key=lambda n: found[n].loss, default=None)


def table(found: list[Row]) -> str:
    """All rows; the chosen one of each method in bold."""
    lines = ["| method | peak lr | warm-up | L0 | FVU | dead | CE + |", "|---|---|---|---|---|---|---|"]
    for method, group in itertools.groupby(found, key=lambda row: row.method):
        some = list(group)
        for number, row in enumerate(some):
            cells = [method, f"{row.lr:.1e}", str(row.fields.get("warmup_steps", "")), f"{row.l0:.1f}"]
            cells += [f"{row.fvu:.4f}", f"{row.dead:.0%}", f"{row.ce_increase:.3f}"]
            lines.append(f"| {' | '.join(f'**{cell}**' if number == chosen(some) else cell for cell in cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Learning rate and warm-up of every method.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--preset", type=Path, default=PRESET)
    given = parser.parse_args()
    content: Any = parse_yaml(read_text(given.preset, "no such preset", LONGEST), str(given.preset))
    found: list[Row] = []
    for method in content["train"]["saes"]:
        name = method.get("name", method["method"])
        config = swept(content["train"], method, content["sweep"])
        train_run(StudyConfig(train=config), given.out / name)
        found += rows(name, config, given.out / name, content["sweep"])
        lines = (json.dumps(row._asdict()) for row in found)
        write_text(given.out / "recipes.jsonl", "\n".join(lines) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
