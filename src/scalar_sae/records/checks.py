"""Consistency checks of a results file that its schema cannot express: lengths of lists, names, signs.

Every report, table and comparison relies on these checks, so a file that was damaged or edited by hand is refused when
it is read. Records in memory are not checked, since they come from the code that computed them.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from scalar_sae.corpora import SEEN
from scalar_sae.errors import UserError, quoted
from scalar_sae.records.label_results import SaeAbsorption, SaeProbes
from scalar_sae.records.sae_results import Duplicates, SaeFidelity, SaeReading, SeedAgreement, SplicedFidelity
from scalar_sae.sites import Site

QUANTILES = ("50", "90", "99")
FAITHFULNESS = ("50", "80", "90")
SCORES = (
    "absolute", "relative", "pure", "log_area", "floor.kl", "floor.ce_increase",
    *(f"{kind}.{q}" for kind in ("edges_at", "live_edges_at") for q in QUANTILES),
    "kl_mean", "unfaithful_area",
    *(f"{kind}.{q}" for kind in ("faithful_at", "faithful_from", "faithful_live_at") for q in FAITHFULNESS),
)  # fmt: skip
"""Scores that have an interval, or null, in `ci`."""
BANDS = ("kl_model", "kl_circuit", "recovery", "faithfulness")
"""Curves that have an interval in `ci` at every edge count."""
SETTINGS = ("prompts", "context", "edges", "rank_prompts")
DATA = ("corpus", "fingerprint", "ranked_on", "scored_on")
ABLATIONS = ("zero", "mean")

Problems = Iterator[str]


def check(results: Any) -> None:
    """Raise a UserError that names the first inconsistency in a results file and its place."""
    checks: dict[str, Callable[[Any], Problems]] = {
        "records": _record, "saes": _sae, "spliced": _spliced, "seeds": _seeds, "duplicates": _duplicates,
        "absorption": _absorption, "probes": _probes, "reading": _reading,
    }  # fmt: skip
    for name, problems in checks.items():
        for number, record in enumerate(getattr(results, name)):
            for problem in problems(record):
                raise UserError(f"{name}.{number}.{problem}")


def _record(record: Any) -> Problems:
    n = len(record.edges)
    if n < 2 or record.edges[0] != 0 or not all(a < b for a, b in zip(record.edges, record.edges[1:], strict=False)):
        yield "edges: expected counts that grow from 0"
        return
    yield from _positive(record, "n_up", "n_down", "n_edges", "n_tokens")
    yield from _not_negative(record, "seed", "n_live_edges", "n_special")
    for name in ("kl_model", "kl_circuit", "live_edges", "l0_down"):
        yield from _length(name, getattr(record, name), n)
    for name in ("edges_at", "live_edges_at", "dip"):
        yield from _keys(name, getattr(record, name), QUANTILES)
    for name in ("faithful_at", "faithful_from", "faithful_live_at"):
        yield from _keys(name, getattr(record, name), FAITHFULNESS)
    yield from _keys("ci", record.ci, (*SCORES, *BANDS))
    for name in SCORES:
        if isinstance(record.ci.get(name), list):
            yield f"ci.{name}: expected one interval"
    if any(record.ci.get(name) is not None for name in BANDS):  # too few prompts give none of them
        for name in BANDS:
            yield from _length(f"ci.{name}", record.ci.get(name), n)
    n_prompts = len(record.prompts.floor_kl)
    for name in ("floor_ce", "kl_mean", "n_tokens", "n_targets"):
        yield from _length(f"prompts.{name}", getattr(record.prompts, name), max(1, n_prompts))
    if any(n < 1 for n in record.prompts.n_tokens) or any(n < 0 for n in record.prompts.n_targets):
        yield "prompts: expected tokens that count in every prompt"
    for name in ("kl_model", "kl_circuit", "live_edges", "l0_down"):
        rows = getattr(record.prompts, name)
        yield from _length(f"prompts.{name}", rows, n)
        for number, row in enumerate(rows):
            yield from _length(f"prompts.{name}.{number}", row, n_prompts)
    yield from _keys("config", record.config, SETTINGS)
    yield from _keys("data", record.data, DATA)
    yield from _text(record.config.get("context"), record.data)


def _text(context: Any, data: dict[str, Any]) -> Problems:
    """Check the fields about the scored text that tables show."""
    if type(context) is not int or context < 1:
        yield f"config.context: expected a number of tokens, not {quoted(context)}"
    for name in ("corpus", "source", "fingerprint"):
        if not isinstance(data.get(name, ""), str):
            yield f"data.{name}: expected text, not {quoted(data[name])}"
    prompts = data.get("prompts", {"scoring": ""})
    if not isinstance(prompts, dict) or not isinstance(prompts.get("scoring"), str):
        yield f"data.prompts: expected the fingerprint of those of scoring, not {quoted(prompts)}"
    if "prompts" in data and data.get("seen") not in (None, *SEEN):
        yield f"data.seen: expected one of {', '.join(SEEN)}, not {quoted(data['seen'])}"


def _sae(sae: SaeFidelity) -> Problems:
    yield from _site("site", sae.site)
    yield from _positive(sae, "d_sae", "n_tokens", "n_prompts")
    yield from _length("density", sae.density, 12)
    yield from _keys("dense", sae.dense, ("0.01", "0.1", "0.5"))
    yield from _keys("ce_recovered", sae.ce_recovered, ABLATIONS)
    yield from _keys("kl_recovered", sae.kl_recovered, ABLATIONS)


def _spliced(group: SplicedFidelity) -> Problems:
    yield from _keys("ce_recovered", group.ce_recovered, ABLATIONS)
    yield from _keys("kl_recovered", group.kl_recovered, ABLATIONS)


def _seeds(seeds: SeedAgreement) -> Problems:
    n = len(seeds.runs)
    if n < 2:
        yield "runs: expected two or more"
        return
    yield from _length("pairs", seeds.pairs, n * (n - 1) // 2)
    yield from _length("absolute_pairs", seeds.absolute_pairs, n * (n - 1) // 2)
    yield from _length("appearances", seeds.appearances, n)
    if sum(seeds.appearances) < 1 or min(seeds.appearances) < 0:
        yield "appearances: expected numbers of latents"
    for number, pair in enumerate(seeds.pairs):
        for place, group in enumerate(pair.by_frequency):
            if group.n < 1:
                yield f"pairs.{number}.by_frequency.{place}.n = {group.n}: expected at least 1"


def _duplicates(pair: Duplicates) -> Problems:
    yield from _site("first", pair.first)
    yield from _site("later", pair.later)


def _absorption(absorption: SaeAbsorption) -> Problems:
    yield from _not_negative(absorption, "n_rows")


def _probes(probes: SaeProbes) -> Problems:
    if not probes.labels:
        yield "labels: expected one or more"
    yield from _not_negative(probes, "n_rows")


def _reading(reading: SaeReading) -> Problems:
    for number, one in enumerate(reading.judged):
        yield from _keys(f"judged.{number}.judge", one.judge, ("model",))


def _length(name: str, values: Sequence[Any] | None, n: int) -> Problems:
    if not isinstance(values, list) or len(values) != n:
        found = f"{len(values)} entries" if isinstance(values, list) else "no list"
        yield f"{name}: {found}, expected {n}"


def _keys(name: str, values: Collection[Any], wanted: Iterable[str]) -> Problems:
    lacking = [key for key in wanted if key not in values]
    if lacking:
        yield f"{name}: lacks {', '.join(lacking)}"


def _positive(record: Any, *names: str) -> Problems:
    for name in names:
        if getattr(record, name) < 1:
            yield f"{name} = {getattr(record, name)}: expected at least 1"


def _not_negative(record: Any, *names: str) -> Problems:
    for name in names:
        if getattr(record, name) < 0:
            yield f"{name} = {getattr(record, name)}: expected at least 0"


def _site(name: str, site: str) -> Problems:
    try:
        Site.parse(site)
    except UserError as error:
        yield f"{name}: {error}"
