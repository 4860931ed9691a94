"""The work of `scalar measure`, `scalar features` and `scalar blind` on the SAEs of a run."""

import hashlib
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Int
from torch import Tensor

from scalar_sae import distributed
from scalar_sae.activations.cache import fingerprint
from scalar_sae.console import say
from scalar_sae.corpora import windows
from scalar_sae.digests import digest_of_sae
from scalar_sae.errors import UserError, unknown
from scalar_sae.evaluation.cross_layer import duplicates
from scalar_sae.evaluation.features.blind import prepare
from scalar_sae.evaluation.features.edges import strongest_edges
from scalar_sae.evaluation.features.features import read_features
from scalar_sae.evaluation.features.tables import tables_in, write_table
from scalar_sae.evaluation.fidelity.fidelity import fidelity
from scalar_sae.evaluation.labels.labelled import evaluate_labels
from scalar_sae.evaluation.labels.labels import Task, characters
from scalar_sae.evaluation.labels.spelling import WORDS, first_letters
from scalar_sae.evaluation.seeds.overlap import THRESHOLD
from scalar_sae.evaluation.seeds.seeds import in_common, seed_agreement
from scalar_sae.io import atomic_write, check_claim, check_writable, claim
from scalar_sae.lm.loading import model_in
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.special import Rule, counted, say_special
from scalar_sae.locks import held
from scalar_sae.own_text import evaluation_text, say_unlike, text_read
from scalar_sae.records.results import Results
from scalar_sae.records.sae_results import TextRead
from scalar_sae.saes import hub
from scalar_sae.saes.fitted import fitted
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.sources import Group, Source
from scalar_sae.saes.store import CONFIG as SAE_CARD
from scalar_sae.saes.store import load_sae, load_saes
from scalar_sae.scoring.rankings.registry import find_edgewise
from scalar_sae.scoring.record import rules
from scalar_sae.sites import Site
from scalar_sae.tokenizer import Ascii

RESULTS = "results.json"
"""Name of the file of records, in a run or in a folder of its own."""
PARTIAL = Path("partial") / "fidelity"
"""Folder of an unfinished measurement of fidelity, beside the records."""
LABELS = ("characters", "first-letters")
"""The values that `scalar measure --labels` accepts."""
RARE = 1e-4
"""Firing rate down to which a measurement should see latents."""


def records_folder(saes: str | Path, out: Path | None = None) -> Path:
    """The folder for records of SAEs: `out`, else the run itself, else `scalar-NAME` in the current folder.

    Nothing is written into a folder that is neither a run of this package nor made for these records.
    """
    path = Path(Source.parse(saes).path)
    if out is not None or any(path.glob(f"saes/*/*/{SAE_CARD}")):
        return out or path
    named = path.resolve() if path.exists() else path
    return Path(f"scalar-{(named.parent if named.name == 'saes' else named).name.partition('@')[0]}")


def check_records(saes: str | Path, folder: Path) -> Path:
    """The path of a folder's `results.json`. Nothing is written.

    Raises:
        UserError: it is damaged or cannot be written, or the folder holds records of other SAEs.
    """
    check_writable(folder / RESULTS)
    if owner := _owner(saes, folder):
        check_claim(folder, owner)
    Results.read_if_there(folder / RESULTS)
    return folder / RESULTS


def open_records(saes: str | Path, folder: Path) -> Path:
    """The path of a folder's `results.json`. The folder is marked as belonging to these SAEs unless it is their run.

    Raises:
        UserError: as `check_records`.
    """
    path = check_records(saes, folder)
    if owner := _owner(saes, folder):
        claim(folder, owner)
        say(f"{saes}: left as it is; records go to {folder}")
    return path


def _owner(saes: str | Path, folder: Path) -> dict[str, Any]:
    """The mark that names the SAEs whose records a folder holds; empty if the folder is their run."""
    path = Path(Source.parse(saes).path)
    return {} if folder == path else {"saes": str(path.resolve() if path.exists() else path)}


def measure_run(
    run: str | Path,
    against: Sequence[str | Path],
    lm: str | None = None,
    text: str | None = None,
    prompts: int = 64,
    context: int | None = None,
    threshold: float = THRESHOLD,
    require_same_partner: bool = True,
    labels: str | None = None,
    words: int = WORDS,
    dtype: str = "auto",
    special: Rule = "skip",
    out: Path | None = None,
    device: str | None = None,
    *,
    allow_trained_text: bool = False,
) -> Results:
    """Measure the fidelity of the SAEs in a folder, and compare them with those of other seeds.

    Results are written after each of fidelity, seeds and labels.

    Args:
        run: a run, or anything that `load_saes` accepts.
        against: runs of other seeds.
        lm: the model that the SAEs read; None takes the run's own.
        text: an address (docs/text.md); None takes the held-out part of the text that the SAEs were trained on.
        prompts: number of prompts, spread evenly over the text.
        context: tokens per prompt; None takes 128, or fewer if the model or the rows of the text have fewer.
        threshold: cosine threshold of the overlap between seeds.
        require_same_partner: whether overlap requires the same partner in both matchings.
        labels: one of LABELS, to measure absorption and probes; None measures neither.
        words: number of words for `first-letters`.
        dtype: precision in which the model computes.
        special: the rule for special tokens (lm/special.py).
        out: folder for `results.json`; None takes that of `records_folder`.
        device: where fidelity is computed; None takes a GPU, if there is one. The rest is computed on the CPU.
        allow_trained_text: whether `text` may be text that the SAEs were trained on.

    Raises:
        UserError: there are no SAEs or no model, the text is too short, the labels do not fit the model, or the other
            seeds have no SAEs in common.
    """
    if labels not in (None, *LABELS):
        raise unknown("labels", labels, LABELS)
    place, source = distributed.device(device), _source(run, lm)
    loaded = {str(folder): load_saes(folder) for folder in (run, *against)}
    if against:
        in_common(loaded, threshold)  # report what cannot be compared before anything is measured
    model = LanguageModel.load(source, dtype=dtype)
    saes = {folder: _fitted(model, groups) for folder, groups in loaded.items()}
    every_group = [group for of_run in saes.values() for group in of_run.values()]
    allow = allow_trained_text
    tokens, about = spread_prompts(text, model, [run], context, prompts, groups=every_group, allow_trained_text=allow)
    task = None if labels is None else _task(model, labels, tokens, words)
    if against:
        in_common(saes, threshold, model)
    say_special(tokens, model.special_ids(special))
    _warn_of_rare(int(counted(tokens, model.special_ids(special)).sum()), len(tokens))
    path = open_records(run, records_folder(run, out))
    model.hf.to(place)
    unfinished = path.parent / PARTIAL
    found = fidelity(model, saes[str(run)], tokens, special, partial=unfinished)
    measured: dict[str, Any] = {"saes": found.saes, "spliced": found.spliced}
    model.hf.to("cpu")
    for record in (*measured["saes"], *measured["spliced"]):
        record.text = about
    measured["duplicates"] = [pair for method, group in saes[str(run)].items() for pair in duplicates(method, group)]
    results = Results.update(path, partial(_put, measured))
    shutil.rmtree(unfinished, ignore_errors=True)
    with suppress(OSError):  # a study may keep unfinished scores beside it
        unfinished.parent.rmdir()
    if against:
        found = seed_agreement(saes, model, tokens, threshold, require_same_partner, special)
        for record in found:
            record.text = about
        results = Results.update(path, partial(_put, {"seeds": found}))
    if task is not None:
        absorption, probes = evaluate_labels(model, saes[str(run)], task)
        for record in (*absorption, *probes) if labels == "characters" else ():
            record.text = about
        results = Results.update(path, partial(_put, {"absorption": absorption, "probes": probes}))
    return results


def _put(measured: dict[str, Any], results: Results) -> None:
    """Replace the lists of records that were measured. Other lists are kept."""
    for name, records in measured.items():
        setattr(results, name, records)


def _warn_of_rare(n_tokens: int, n_prompts: int) -> None:
    """If the prompts are too few to see latents that fire on RARE of the tokens, say how many are needed."""
    wanted = 3 / RARE
    if 0 < n_tokens < wanted:
        say(
            f"{n_tokens:,} tokens: latents that fire on fewer than {3 / n_tokens:.1e} of them may look dead; "
            f"to see those of {RARE:g}, measure on {wanted:,.0f} (--prompts {math.ceil(wanted * n_prompts / n_tokens)})"
        )


def _source(run: str | Path, lm: str | None) -> str | Path:
    """The language model that SAEs read: the named one, or the one in their folder."""
    folder = hub.local(Source.parse(run).path)
    if not folder.exists():
        raise UserError(f"{folder}: no such file or folder")
    source = lm or model_in(folder)
    if source is None:
        raise UserError(f"{run}: holds no language model; name the one that the SAEs read with --lm")
    return source


def _fitted(model: LanguageModel, groups: dict[str, Group]) -> dict[str, Group]:
    return {name: fitted(model, group) for name, group in groups.items()}


def _task(model: LanguageModel, labels: str, tokens: Int[Tensor, "prompt token"], words: int) -> Task:
    """The labelled rows of a task, for labels that the model's tokens can have."""
    if labels == "first-letters":
        return first_letters(model, words)
    if not isinstance(model.tokenizer, Ascii):
        raise UserError(f"{model.name}: its tokens are not characters; take --labels first-letters")
    return characters(tokens)


def spread_prompts(
    text: str | None,
    model: LanguageModel,
    saes: Sequence[str | Path],
    context: int | None,
    n: int,
    method: str | None = None,
    groups: Iterable[Mapping[Site, SAE]] = (),
    *,
    allow_trained_text: bool = False,
) -> tuple[Int[Tensor, "prompt token"], TextRead]:
    """N prompts spread evenly over the evaluation text of SAEs, and the description of the text for a record.

    The user is told how the prompts differ from those that the SAEs in `groups`, loaded from the paths `saes`, were
    trained on.

    Raises:
        UserError: the text has fewer prompts, or it cannot be read (own_text.py).
    """
    n_tokens = n * (context or min(model.context, 128))
    corpus = evaluation_text(model, saes, text, n_tokens, method, allow_trained_text=allow_trained_text)
    context = context or corpus.context(model.context)
    for said in corpus.remarks(context):
        say(said)
    rows = windows(corpus.to_measure, context, corpus.name, corpus.start)
    if rows.shape[0] < n:
        raise UserError(
            f"{corpus.name}: {n} prompts of {context} tokens wanted, only {rows.shape[0]} there; lower --prompts, or "
            "give a longer text with --tokens"
        )
    say_unlike(groups, corpus, context)
    tokens = rows[:: rows.shape[0] // n][:n]
    return tokens, text_read(corpus, tokens)


def read_run(
    run: str | Path,
    out: Path | None,
    lm: str | None = None,
    method: str | None = None,
    text: str | None = None,
    prompts: int = 512,
    context: int | None = None,
    ranking: str | None = "leave_one_out",
    rank_prompts: int = 4,
    memory: int | float = 8.0,
    dtype: str = "auto",
    special: Rule = "skip",
    *,
    device: str | None = None,
    allow_trained_text: bool = False,
) -> list[Path]:
    """Write feature tables of SAEs to `out/METHOD/SITE`, with the edges between neighbouring SAEs.

    Existing tables are kept. `out/METHOD/settings.json` records how they were made.

    Args:
        run: a run, or anything that `load_saes` accepts.
        out: folder for the tables; None takes `features` in that of `records_folder`.
        lm: the model that the SAEs read; None takes the run's own.
        method: the group of SAEs to read; None takes all.
        text: an address (docs/text.md); None takes the held-out part of the text that the SAEs were trained on.
        prompts: number of prompts to read.
        context: tokens per prompt.
        ranking: ranking of the edges; None writes no edges.
        rank_prompts: number of these prompts on which edges are ranked.
        memory: gigabytes that ranking edges may use.
        dtype: precision in which the model computes.
        special: the rule for special tokens (lm/special.py).
        device: where the model and the SAEs compute; None takes a GPU, if there is one.
        allow_trained_text: whether `text` may be text that the SAEs were trained on.

    Returns:
        The folders of the SAEs.

    Raises:
        UserError: there are no SAEs or no model, the text is too short, the method or ranking is unknown, an SAE has
            another width than the model, the memory is too small, or the existing tables were made with other settings.
    """
    if ranking is not None:
        find_edgewise(ranking, "edges of features")
    place, source, loaded = distributed.device(device), _source(run, lm), load_saes(run)
    if method is not None and method not in loaded:
        raise unknown("method", method, loaded)
    model = LanguageModel.load(source, dtype=dtype)
    groups = _fitted(model, loaded)
    read = [group for name, group in groups.items() if method in (None, name)]
    allow = allow_trained_text
    tokens, about = spread_prompts(text, model, [run], context, prompts, method, read, allow_trained_text=allow)
    settings = {"lm": fingerprint(model), "tokens": hashlib.sha256(tokens.numpy().tobytes()).hexdigest()}
    settings |= {"text": about.model_dump(), "prompts": prompts, "context": tokens.shape[1]}
    settings |= {"edges": ranking, "edge_prompts": rank_prompts}
    settings |= {"special": list(model.special_ids(special))}
    say_special(tokens, model.special_ids(special))
    groups = {name: group for name, group in groups.items() if method in (None, name)}
    for name, group in groups.items():
        for site, sae in group.items():
            if sae.d_model != model.d_model:
                raise UserError(f"{name} {site}: reads {sae.d_model} dimensions, {model.name} has {model.d_model}")
    home = records_folder(run, out)
    out = out or home / "features"
    model.hf.to(place)
    folders: list[Path] = []
    with held(home, "features", remedy="wait until it ends, or choose another --out"):
        open_records(run, home)
        for name, group in groups.items():
            saes = {str(site): [digest_of_sae(sae), *rules(sae)] for site, sae in group.items()}
            claim(out / name, settings | {"saes": saes})
            places = {site: out / name / str(site) for site in sorted(group)}
            there = {folder: tables_in(folder) for folder in places.values()}
            for site, folder in places.items():
                if "latents" not in there[folder]:
                    read_features(model, site, group[site], tokens, folder, special=special)
            if ranking is not None and not all("edges" in tables for tables in there.values()):
                edges = strongest_edges(
                    model, group, tokens[:: -(-prompts // rank_prompts)], ranking, memory=memory, special=special
                )
                for site, folder in places.items():
                    with atomic_write(folder / "edges.parquet") as temporary:
                        write_table(edges[site], temporary)
            folders += places.values()
    return folders


def prepare_blind(
    out: Path,
    a: Path,
    b: Path,
    lm: str | None,
    text: str | None,
    pairs: int,
    prompts: int,
    dtype: str = "auto",
    special: Rule = "skip",
    *,
    device: str | None = None,
    allow_trained_text: bool = False,
) -> None:
    """Draw the pairs of a blind comparison of two SAEs at one site, unless they were drawn before.

    Raises:
        UserError: these are not SAEs, their sites differ, no folder above them holds a model, an SAE has another width
            than the model, too few latents fire, or the folder holds a comparison with other settings.
    """
    (first, first_card), (second, second_card) = load_sae(a), load_sae(b)
    site = Site.parse(first_card.site)
    if not site.same_place(Site.parse(second_card.site)):
        raise UserError(f"{a} reads {first_card.site}, {b} reads {second_card.site}: compare SAEs of one site")
    source = lm or next((found for above in (*a.parents, *b.parents) if (found := model_in(above))), None)
    if source is None:
        raise UserError(f"{a}, {b}: no language model in a folder above; name the one that they read with --lm")
    model = LanguageModel.load(source, dtype=dtype, device=distributed.device(device))
    for folder, sae in ((a, first), (b, second)):
        if sae.d_model != model.d_model:
            raise UserError(f"{folder}: reads {sae.d_model} dimensions, {model.name} has {model.d_model}")
    groups, allow = [{site: first}, {site: second}], allow_trained_text
    tokens, about = spread_prompts(text, model, [a, b], None, prompts, groups=groups, allow_trained_text=allow)
    say_special(tokens, model.special_ids(special))
    names: dict[Literal["a", "b"], str] = {"a": str(a), "b": str(b)}
    prepare(out, model, site, {"a": first, "b": second}, names, tokens, pairs, special=special, text=about)
