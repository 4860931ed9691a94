"""A whole study in one run directory: train SAEs, measure them, score every pair, write the report.

    out/config.yaml   the resolved config; a directory with another one is refused
    out/events.jsonl  the event log
    out/lm/           the language model
    out/saes/         <name>/<site>/sae.safetensors, sae.json
    out/results.json  see records/results.py
    out/report.html

Every stage does only what is not done yet, so the same command continues a study that was stopped.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict

from scalar_sae import distributed
from scalar_sae.console import Bar, say
from scalar_sae.corpora import VAL_SHARE, Corpus, absolute, load_corpus, windows
from scalar_sae.digests import digest, digest_of_sae
from scalar_sae.errors import UserError
from scalar_sae.evaluation.fidelity.fidelity import fidelity, standing_in
from scalar_sae.io import Events, atomic_write, differences, write_text
from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.special import Rule
from scalar_sae.locks import held
from scalar_sae.own_text import say_unlike, text_read
from scalar_sae.preflight import check_pairs, check_texts, check_training
from scalar_sae.readers import WRITER, check_version, parse_yaml, read_text
from scalar_sae.records.results import Record, Results
from scalar_sae.records.sae_results import SaeFidelity, SplicedFidelity
from scalar_sae.saes.sae import SAE
from scalar_sae.saes.store import load_saes
from scalar_sae.scoring.config import (
    ScoreConfig,
    StudyScores,
    Texts,
    check_grid,
    held_out,
)
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.rankings.registry import find_ranking
from scalar_sae.scoring.score import say_left_out, score
from scalar_sae.sealed import check_sealed, seal
from scalar_sae.sites import Site
from scalar_sae.training import trackers
from scalar_sae.training.config import TrainConfig, read_preset, validated
from scalar_sae.training.loop import train

KEEP = "move the folder away and run the same command to write it again"


class StudyConfig(BaseModel):
    """The config of a study: how SAEs are trained and scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: TrainConfig
    score: StudyScores = StudyScores()

    @classmethod
    def from_preset(
        cls, name: str, changes: dict[str, Any] | None = None, special: Rule | None = None
    ) -> "StudyConfig":
        """A preset with some of its fields changed and, if given, another rule for special tokens everywhere.

        Args:
            name: a shipped preset, or a path to a YAML file.
            changes: values by field: `tokens` or `train.tokens`, `score.prompts`.
            special: what happens at special tokens.

        Raises:
            UserError: there is no such preset, or a field is unknown or out of range.
        """
        content = read_preset(name)
        sections: dict[str, dict[str, Any]] = {"train": {**content["train"]}, "score": {**(content.get("score") or {})}}
        if more := sorted(set(content) - set(sections)):
            raise UserError(f"{name}: unknown section {', '.join(more)}; expected train and score")
        for key, value in (changes or {}).items():
            section, dot, field = key.partition(".")
            if not dot and key in StudyScores.model_fields and key not in TrainConfig.model_fields:
                raise UserError(f"--set {key}: a field of the scoring; write --set score.{key}=VALUE")
            found = (section, field) if dot and section in sections else ("train", key)
            sections[found[0]][found[1]] = value
        for section in sections.values() if special is not None else ():
            section["special"] = special
        try:
            return cls._of(**sections)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error

    @classmethod
    def of_run(cls, out: Path) -> "StudyConfig":
        """Read the config from a run directory's `config.yaml`.

        Raises:
            UserError: it is not a run directory, the file does not hold a config, or its text is not there any more.
        """
        if not os.path.lexists(out / "config.yaml"):
            raise UserError(f"{out}: no run to go on with (it has no config.yaml)")
        found = RunConfig.read(out / "config.yaml")
        try:
            absolute(found.train.corpus)
        except UserError as error:
            raise UserError(f"{out / 'config.yaml'}: train.corpus: {error}") from error
        return cls(train=found.train, score=found.score)

    @classmethod
    def _of(cls, train: dict[str, Any], score: dict[str, Any]) -> "StudyConfig":
        config = cls(train=validated(TrainConfig, train, "train"), score=validated(StudyScores, score, "score"))
        found = absolute(config.train.corpus)  # so that it is also found from another folder
        return config.model_copy(update={"train": config.train.model_copy(update={"corpus": found})})


class RunConfig(StudyConfig):
    """The content of a run directory's `config.yaml`."""

    data: dict[str, Any]
    """The description of the text."""
    format_version: int = 1
    written_by: str = WRITER

    @classmethod
    def read(cls, path: Path) -> "RunConfig":
        """Read a run's config.

        Raises:
            UserError: it is damaged, of a later version, or not a config.
        """
        content = parse_yaml(read_text(path, "no config here"), str(path))
        check_version(path, content, cls)
        return validated(cls, content, str(path))


def open_run(out: Path, config: StudyConfig, data: dict[str, Any]) -> Events:
    """Claim a run directory for a config and a text, or continue the run that it holds with the same ones.

    Raises:
        UserError: the directory holds another run, or files that do not belong to a run.
    """
    resolved = RunConfig(train=config.train, score=config.score, data=data).model_dump(mode="json")
    _check_same_run(out, {name: value for name, value in resolved.items() if name != "written_by"})
    path = out / "config.yaml"
    if not os.path.lexists(path):
        write_text(path, yaml.safe_dump(resolved, sort_keys=False))
    return Events(out / "events.jsonl")


def check_run(out: Path, config: StudyConfig) -> None:
    """Check whether a run directory is free for a config, as far as that is possible before the text is read.

    Raises:
        UserError: the directory holds another run, or files that do not belong to a run.
    """
    _check_same_run(out, config.model_dump(mode="json", include={"train", "score"}))


def _check_same_run(out: Path, asked: dict[str, Any]) -> None:
    """Raise a UserError if a directory holds a run with other values of some config fields, or is not a run
    directory.
    """
    path = out / "config.yaml"
    if os.path.lexists(path):
        there = RunConfig.read(path).model_dump(mode="json", include=set(asked))
        if differing := differences(there, asked):
            raise UserError(f"{out}: already holds another run ({'; '.join(differing)}); choose another --out")
    elif out.exists() and not (out.is_dir() and all(file.name[0] == "." or file == path for file in out.iterdir())):
        raise UserError(f"{out}: exists and is not a run directory; choose another --out")


def train_run(
    config: StudyConfig,
    out: Path,
    cache: Path | None = None,
    log: Sequence[str] = (),
    device: str | None = None,
    *,
    to_score: bool = False,
) -> LanguageModel:
    """Train the SAEs of a study into its run directory. Returns the language model that is kept there.

    Args:
        config: the study.
        out: its run directory.
        cache: a folder in which activations are kept for later runs.
        log: trackers that receive the events in addition to `events.jsonl`: `tensorboard`, `wandb`.
        device: where to compute; None takes a GPU if there is one.
        to_score: whether `score_run` follows, so that its requirements are checked beforehand.

    Raises:
        UserError: something in the config cannot be trained or scored. It is raised before anything is written.
    """
    for name in log:
        trackers.check(name)
    place = distributed.device(device)
    check_run(out, config)
    if to_score:
        for ranking in config.score.rankings:
            find_ranking(ranking)
        check_grid(config.score.edges)
        Results.read_if_there(out / "results.json")  # report damage before anything is trained
    with held(out, remedy="wait until it ends, or choose another --out"):
        lm = _source(config, out)
        if to_score:
            with Bar("check the sizes of what is to be scored"):
                check_pairs(config.train, config.score, lm)
        corpus = text_of(config, lm)
        with Bar("check what is to be trained"):
            check_training(config.train, lm, corpus)
        if to_score:
            check_texts(config.score, lm, corpus)
        with distributed.first_rank_first():
            events = open_run(out, config, corpus.describe())
            _keep_model(lm, out / "lm")
        distributed.check_agreement(str(out / "config.yaml"), read_text(out / "config.yaml", "no config here"))
        for remark in corpus.remarks(config.train.context):
            say(remark)
        if distributed.rank() == 0:
            events.listeners += [trackers.Tracker(name, out) for name in log]
        lm = LanguageModel.load(out / "lm", device=place)
        train(config.train, lm, corpus, out, events, cache)
    return lm


def _source(config: StudyConfig, out: Path) -> LanguageModel:
    """The language model of a study: the one in its run directory, else the one that the config names."""
    path, kept = out / "config.yaml", out / "lm"
    if os.path.lexists(path) and os.path.lexists(kept):
        train = RunConfig.read(path).train
        if (train.lm, train.dtype) == (config.train.lm, config.train.dtype):
            check_sealed(kept, KEEP)
            return LanguageModel.load(kept)
    return LanguageModel.load(config.train.lm, dtype=config.train.dtype)


def _keep_model(lm: LanguageModel, folder: Path) -> None:
    """Write the language model into a run directory. An existing one was checked when it was read (`_source`)."""
    if os.path.lexists(folder):
        return
    with atomic_write(folder) as temporary:
        lm.save(temporary)
        seal(temporary, *(path.name for path in temporary.iterdir()))


def text_of(config: StudyConfig, lm: LanguageModel) -> Corpus:
    """The text of a study. Of a data set on the Hub, only as much is read as training and scoring need."""
    prompts = max(config.score.prompts, config.score.n_rank_prompts)
    to_score = round(2 * prompts * config.score.context / VAL_SHARE)
    return load_corpus(config.train.corpus, lm, n_train=max(config.train.tokens, to_score))


def pairs(config: StudyConfig, lm: LanguageModel, saes: Mapping[str, Mapping[Site, SAE]]) -> list[tuple[str, Pair]]:
    """The pairs that a study scores in the order of its blocks, each with the name of its SAEs."""
    found = [
        (method.name, Pair.between(lm, block, saes[method.name]))
        for method in config.train.saes
        for block in method.blocks(lm.n_layers)
        if config.score.takes(block)
    ]
    return sorted(found, key=lambda named: (named[1].block.mixes_tokens, named[1].block.up.layer))


def score_run(config: StudyConfig, lm: LanguageModel, out: Path) -> Results:
    """Measure the SAEs of a run and score every pair. Records that are in `results.json` already are not computed
    again.

    Raises:
        UserError: another process is working there, or `results.json` or an SAE is damaged.
    """
    with held(out, remedy="wait until it ends, or choose another --out"):
        return _score_run(config, lm, out)


def _score_run(config: StudyConfig, lm: LanguageModel, out: Path) -> Results:
    events = Events(out / "events.jsonl")
    path = out / "results.json"
    results = distributed.broadcast_from_first(lambda: Results.read_if_there(path))
    corpus = replace(text_of(config, lm), seen="held out")
    saes = load_saes(out)
    distributed.check_agreement(
        f"the SAEs in {out}", [digest_of_sae(sae) for group in saes.values() for sae in group.values()]
    )
    if not results.saes and standing_in(saes) and distributed.rank() == 0:
        prompts = windows(corpus.to_measure, min(config.train.context, lm.context), corpus.name, corpus.start)
        n = config.score.fidelity_prompts
        prompts = prompts[:: max(1, len(prompts) // n)][:n]
        measured = fidelity(lm, saes, prompts, config.score.special, partial=out / "partial" / "fidelity")
        for record in (*measured[0], *measured[1]):
            record.text = text_read(corpus, prompts)
        results = Results.update(path, partial(_put_fidelity, measured))
    saes = {name: group.to(lm.device) for name, group in saes.items()}
    texts = held_out(corpus, config.score)
    say_unlike(saes.values(), corpus, config.score.context)
    say_left_out(lm, texts, config.score)
    done = {record.key: record for record in results.records}
    wanted = _jobs(config, lm, saes)
    _check_weights(
        path, lm, [(done[job.key], job.pair) for job in wanted if job.key in done and not job.config.control]
    )
    jobs = [job for job in wanted if job.key not in done]
    costs = [job.config.steps(job.config.n_rank_prompts, job.config.prompts) * _weight(job.pair) for job in jobs]
    total = sum(cost * share for cost, share in zip(costs, distributed.shares(len(jobs)), strict=True))
    with Bar("score", total) as bar:
        work = partial(_record, texts, out, bar)
        for finished in distributed.run_jobs(jobs, work):
            results.put(finished)
            if distributed.rank() == 0:
                results = Results.update(path, partial(Results.put, records=finished))
                for record in finished:
                    shutil.rmtree(_partly(out, record.key), ignore_errors=True)
                    said = record.model_dump(include={"block", "method", "ranking", "control", "seconds"})
                    events("score", **said)
                    say(str(record))
    if distributed.rank() == 0:
        shutil.rmtree(out / "partial", ignore_errors=True)
    return results


def _check_weights(path: Path, lm: LanguageModel, made: list[tuple[Record, Pair]]) -> None:
    """Raise a UserError if a record was made with other weights than those of its pair."""
    if not made:
        return
    of_lm = digest(lm.parameters())
    digests = {id(sae): digest_of_sae(sae) for _, pair in made for sae in (pair.up, pair.down)}
    for record, pair in made:
        if record.hashes != {"lm": of_lm, "up": digests[id(pair.up)], "down": digests[id(pair.down)]}:
            raise UserError(
                f"{path}: the record of {record.block}, {record.method}, {record.ranking} was made with other SAEs or "
                "another language model than this run has; move the file away and run the command again"
            )


def _put_fidelity(measured: tuple[list[SaeFidelity], list[SplicedFidelity]], results: Results) -> None:
    results.saes, results.spliced = measured


class _Job(NamedTuple):
    """A record to compute."""

    method: str
    pair: Pair
    config: ScoreConfig

    @property
    def key(self) -> tuple[str, str, str, str | None]:
        """The record's key."""
        return str(self.pair.block), self.method, self.config.ranking, self.config.control


def _jobs(config: StudyConfig, lm: LanguageModel, saes: Mapping[str, Mapping[Site, SAE]]) -> list[_Job]:
    """Every pair under every ranking, then the controls of each method's first pair."""
    found = pairs(config, lm, saes)
    first = dict(reversed(found))
    jobs = [_Job(name, pair, score) for name, pair in found for score in config.score.scores()]
    return jobs + [_Job(name, pair, score) for name, pair in first.items() for score in config.score.control_scores()]


def _record(texts: Texts, out: Path, bar: Bar, job: _Job) -> Record:
    """Compute a record."""
    note = f"{job.pair.block} {job.method} {job.config.control or ''} {job.config.ranking}"
    step = partial(_step, bar, _weight(job.pair), note)
    return score(job.pair, texts, job.config, method=job.method, on_progress=step, partial=_partly(out, job.key))


def _partly(out: Path, key: tuple[str, str, str, str | None]) -> Path:
    """The path of the finished parts of an unfinished record."""
    block, method, ranking, control = key
    number = hashlib.sha256(repr(key).encode()).hexdigest()[:8]  # two score files may have the same name
    return out / "partial" / "-".join([block, method, Path(ranking).name[:40], *([control] if control else []), number])


def _step(bar: Bar, weight: int, note: str, n: int | float) -> None:
    bar.step(n * weight, note)


def _weight(pair: Pair) -> int:
    """The approximate cost of a pair per prompt, for the estimate of the time left."""
    return max(1, pair.down.d_sae // 64) * (2 if pair.block.mixes_tokens else 1)
