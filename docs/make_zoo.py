"""The tables of methods in docs/zoo.md, from runs of the presets `table` (one per seed) and `smollm2-table`.

python docs/make_zoo.py table runs/table/0 runs/table/1 runs/table/2   # reads the runs, writes zoo_table.json, the page
python docs/make_zoo.py smollm2 runs/smollm2-table                     # the same with zoo_smollm2.json
python docs/make_zoo.py                                                # writes the page from both files
"""

import json
import sys
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from scalar_sae.records.results import Record, Results
from scalar_sae.records.sae_results import SaeFidelity
from scalar_sae.scoring.compare import method_scores, ratios
from scalar_sae.scoring.resampled import Ends
from scalar_sae.sites import Block

BASE = "topk"
HEADLINE = "faithful_at.80"
LEVELS = ("faithful_at.50", HEADLINE, "faithful_at.90", "unfaithful_area", "floor.kl")
FIDELITY = ("fvu", "l0", "dead", "ce_increase")
DOCS = Path(__file__).parent
PAGE = DOCS / "zoo.md"
TABLES = {"table": DOCS / "zoo_table.json", "smollm2": DOCS / "zoo_smollm2.json"}

Cell = dict[str, Any]
"""A score: `value` (None for never), `interval` (None if it is not known) and `seeds`."""


def collected(runs: list[Results]) -> dict[str, Any]:
    """What the page needs of some runs, small enough to be checked in."""
    ranking = runs[0].records[0].ranking
    records = [record for run in runs for record in run.under(ranking)]
    first = records[0]
    saes = [sae for run in runs for sae in run.saes]
    kinds = list(dict.fromkeys(record.block.split(".")[0] for record in records))
    names = ("prompts", "rank_prompts", "context", "edges", "ablation", "rank_halves")
    settings = {name: first.config.get(name) for name in names}
    return {
        "ranking": ranking,
        "settings": settings,
        "versions": first.versions,
        "kinds": {kind: of_kind([r for r in records if r.block.startswith(f"{kind}.")], saes) for kind in kinds},
    }


def of_kind(records: list[Record], saes: list[SaeFidelity]) -> dict[str, Any]:
    """Scores at the blocks of a kind, by method and block and over all blocks, and the fidelity of the SAEs there."""
    found: dict[str, dict[str, dict[str, Cell]]] = {}
    for score in LEVELS:
        for one in method_scores(records, score):
            cell = {"value": one.value, "interval": one.interval, "seeds": one.n_seeds}
            found.setdefault(one.method, {}).setdefault(one.block.split(" ")[0], {})[score] = cell
    beside: dict[str, Cell] = {}
    if BASE in found and len(found) > 1:
        for one in ratios(records, BASE, HEADLINE).rows:
            if one.block.startswith("all") or len({record.block for record in records}) == 1:
                known = isfinite(one.value) and not one.base_never
                beside[one.method] = {"value": one.value if known else None, "interval": one.interval}
    blocks = sorted({record.block for record in records})
    sites = {str(site) for name in blocks for block in [Block.parse(name)] for site in (block.up, block.down)}
    here = [sae for sae in saes if sae.site in sites and sae.method in found]
    return {"blocks": blocks, "scores": found, "ratios": beside, "fidelity": fidelity(here)}


def fidelity(saes: list[SaeFidelity]) -> dict[str, dict[str, list[float]]]:
    """Mean over sites and seeds, and the least and the largest, of each measure of a method's SAEs."""
    found: dict[str, dict[str, list[float]]] = {}
    for method in dict.fromkeys(sae.method for sae in saes):
        mine = [sae for sae in saes if sae.method == method]
        values = {name: [getattr(sae, name) for sae in mine] for name in FIDELITY}
        found[method] = {name: [fmean(each), min(each), max(each)] for name, each in values.items()}
    return found


def tables(content: dict[str, Any]) -> str:
    """The settings in a sentence, then for each kind of block the methods and the methods block by block."""
    settings = content["settings"]
    lines = [
        f"{settings['prompts']} prompts of {settings['context']} tokens, edges ranked by `{content['ranking']}` on "
        f"{settings['rank_prompts']} others, ablated latents set to their {settings['ablation']}."
        + (" Both halves of these others were ranked on too." if settings.get("rank_halves") else ""),
        "",
    ]
    for kind, found in content["kinds"].items():
        means = "geometric means over " if len(found["blocks"]) > 1 else ""
        lines += [f"**{kind}: {means}{', '.join(found['blocks'])}**", ""]
        lines += ["| SAEs | faithful@80 | relative to TopK | floor (nats) | FVU | L0 | dead | CE + |", "|---" * 8 + "|"]
        over = "all" if len(found["blocks"]) > 1 else found["blocks"][0]
        for method, blocks in found["scores"].items():
            scores_of, quality = blocks[over], found["fidelity"][method]
            ratio = "1" if method == BASE else shown(found["ratios"].get(method), ".2g")
            cells = [shown(scores_of[HEADLINE], ",.0f"), ratio, shown(scores_of["floor.kl"], ".2f")]
            cells += [f"{quality['fvu'][0]:.3f}", f"{quality['l0'][0]:.1f}", f"{quality['dead'][0]:.0%}"]
            lines.append(f"| {' | '.join([method, *cells, format(quality['ce_increase'][0], '.3f')])} |")
        lines += ["", f"**{kind}: every block**", ""]
        lines += ["| SAEs | block | faithful@50 | faithful@80 | faithful@90 | unfaithful area | floor (nats) |"]
        lines += ["|---" * 7 + "|"]
        forms = (",.0f", ",.0f", ",.0f", ".2f", ".2f")
        for method, blocks in found["scores"].items():
            for block in found["blocks"]:
                each = [shown(blocks[block][score], form) for score, form in zip(LEVELS, forms, strict=True)]
                lines.append(f"| {' | '.join([method, block, *each])} |")
        lines.append("")
    return "\n".join(lines)


def shown(cell: Cell | None, form: str) -> str:
    """A score with its interval."""
    if cell is None:
        return "–"
    if cell["value"] is None:
        return "never"
    interval: Ends | None = cell["interval"]
    if interval is None:
        return format(cell["value"], form)
    low, high = ("?" if end is None else format(end, form) for end in interval)
    return f"{cell['value']:{form}} [{low}, {high}]"


def page(text: str, name: str, content: dict[str, Any]) -> str:
    """The page with the tables of a file in their place."""
    start, end = f"<!-- made by make_zoo.py: {name} -->", f"<!-- end of {name} -->"
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n{tables(content)}{end}{after}"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        name, *folders = sys.argv[1:]
        found = collected([Results.read(Path(folder) / "results.json") for folder in folders])
        TABLES[name].write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    for name, file in TABLES.items():
        text = page(text, name, json.loads(file.read_text(encoding="utf-8")))
    PAGE.write_text(text, encoding="utf-8")
