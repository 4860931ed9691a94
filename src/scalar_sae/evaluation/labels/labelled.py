"""Evaluate SAEs with labels: absorption, sparse probing, TPP and SCR of every SAE on the same rows.

    absorption, probes = evaluate_labels(lm, {"topk": {site: sae, ...}, ...}, characters(tokens))

Linear probes of the activations are fitted once per site and label and used for all SAEs there.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from scalar_sae.console import Bar, say
from scalar_sae.evaluation.labels.absorption import (
    SAEBENCH_CODE,
    SAEBENCH_PAPER,
    WORST_F1,
    Parent,
    Thresholds,
    absorbed,
    main_latents,
    measured_rows,
)
from scalar_sae.evaluation.labels.labels import Task
from scalar_sae.evaluation.labels.probes import Probe, Rows, balanced_accuracy, fit, scr, sparse_probe, tpp
from scalar_sae.lm.model import LanguageModel
from scalar_sae.records.label_results import CrossedLabels, LabelProbe, ParentAbsorption, SaeAbsorption, SaeProbes
from scalar_sae.saes.sae import SAE
from scalar_sae.sites import Site

KS = (1, 2, 5)
"""Numbers of latents that a sparse probe reads."""
NS = (2, 5, 20)
"""Numbers of latents that TPP and SCR ablate."""


class Labelled(NamedTuple):
    """The result of `evaluate_labels`."""

    absorption: list[SaeAbsorption]
    """Two records per SAE: with the thresholds of SAEBench's paper and of its code."""
    probes: list[SaeProbes]


class _Site(NamedTuple):
    """The activations and probes that all SAEs of a site share."""

    x: Rows
    probes: dict[str, Probe]
    parents: dict[str, Parent]


@torch.no_grad()
def evaluate_labels(lm: LanguageModel, saes: Mapping[str, Mapping[Site, SAE]], task: Task, batch: int = 16) -> Labelled:
    """Measure every SAE on the labels of a task. Labels that are too rare to learn are reported and left out.

    Args:
        lm: the model that the SAEs read.
        saes: SAEs by method and site. SAEs whose decoder needs the input, and transcoders, are left out.
        task: rows with labels.
        batch: prompts per forward pass.

    Raises:
        UserError: no label occurs often enough.
    """
    task, missing = task.usable()
    if missing:
        say(f"{task.name}: left out, too rare among {len(task.rows):,} tokens: {', '.join(missing)}")
    plain = {
        (method, site): sae
        for method, group in saes.items()
        for site, sae in sorted(group.items())
        if sae.writes is None and not sae.decodes_from_input
    }
    activations = _read(lm, sorted({site for _, site in plain}), task, batch)
    found = Labelled([], [])
    with Bar("labels", len(plain)) as bar:
        here = {site: _prepared(x, task) for site, x in activations.items()}
        for (method, site), sae in plain.items():
            acts = sae.encode(here[site].x)
            found.absorption.extend(_absorption(method, site, sae, acts, here[site], task))
            found.probes.append(_probes(method, site, sae, acts, here[site], task))
            bar.step(note=f"{method} {site}")
    return found


def _read(lm: LanguageModel, sites: list[Site], task: Task, batch: int) -> dict[Site, Float[Tensor, "n d_model"]]:
    """The activations of the task's rows at each site, from one pass over the prompts."""
    wanted, place = task.rows.sort()
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
    length = task.tokens.shape[1]
    for number, some in enumerate(task.tokens.split(batch)):
        start = number * batch * length
        rows = wanted[(wanted >= start) & (wanted < start + some.numel())] - start
        for site, x in lm.activations(some, sites).items():
            parts[site].append(x.flatten(0, 1)[rows])
    return {site: torch.cat(some)[place.argsort()] for site, some in parts.items()}


def _prepared(x: Rows, task: Task) -> _Site:
    probes = {name: fit(x[::2], label[::2]) for name, label in task.labels.items()}
    parents = {name: Parent.probed(x, task.labels[name], probes[name]) for name, _ in task.parents}
    return _Site(x, probes, parents)


def _absorption(method: str, site: Site, sae: SAE, acts: Rows, here: _Site, task: Task) -> list[SaeAbsorption]:
    """One record for each setting of the thresholds."""
    main = {
        name: main_latents(acts[::2], parent.label[::2])
        for name, parent in here.parents.items()
        if parent.f1 is not None and parent.f1 > WORST_F1
    }
    records: list[SaeAbsorption] = []
    for setting in (SAEBENCH_PAPER, SAEBENCH_CODE):
        parents = [_of_parent(sae, acts, here, task, *pair, main, setting) for pair in task.parents]
        records.append(
            SaeAbsorption(
                method=method,
                site=str(site),
                task=task.name,
                thresholds=setting.name,
                share=setting.share,
                cosine=setting.cosine,
                most=setting.most,
                fraction=_mean([one.fraction for one in parents]),
                full=_mean([one.full for one in parents]),
                parents=parents,
                n_rows=len(task.rows),
            )
        )
    return records


def _of_parent(
    sae: SAE,
    acts: Rows,
    here: _Site,
    task: Task,
    name: str,
    child: str | None,
    main: dict[str, list[int]],
    thresholds: Thresholds,
) -> ParentAbsorption:
    parent = here.parents[name]
    there = measured_rows(parent, None if child is None else task.labels[child])
    record = ParentAbsorption(
        parent=name, child=child, probe_f1=parent.f1 or 0.0, fraction=None, full=None, main=main.get(name, []), n=0
    )
    if name not in main or not there.any():
        return record
    found = absorbed(sae, here.x[there], acts[there], parent, main[name], thresholds)
    return record.model_copy(update={"fraction": found.fraction, "full": found.full, "n": found.n})


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _probes(method: str, site: Site, sae: SAE, acts: Rows, here: _Site, task: Task) -> SaeProbes:
    labels = task.labels
    classes = task.classes if len(task.classes) > 1 else ()
    return SaeProbes(
        method=method,
        site=str(site),
        task=task.name,
        labels=[
            LabelProbe(
                label=name,
                n=int(label.sum()),
                dense=balanced_accuracy(here.probes[name].says(here.x[1::2]), label[1::2]),
                sparse=sparse_probe(acts, label, [k for k in KS if k <= sae.d_sae]),
            )
            for name, label in labels.items()
        ],
        tpp=tpp(sae, here.x, [labels[c] for c in classes], NS, [here.probes[c] for c in classes]) if classes else None,
        scr=[
            CrossedLabels(wanted=wanted, spurious=spurious, scr=scr(sae, here.x, labels[wanted], labels[spurious], NS))
            for wanted, spurious in task.crossed
            if _disagree(labels[wanted], labels[spurious])
        ],
        n_rows=len(task.rows),
    )


def _disagree(wanted: Tensor, spurious: Tensor) -> bool:
    """Whether a probe for `wanted` can be biased: the first half has rows with both labels and rows with neither."""
    both, neither = (wanted & spurious)[::2], (~wanted & ~spurious)[::2]
    return bool(both.any() and neither.any() and (wanted != spurious).any())
