"""A small run to explore: a model of characters, two SAEs, a record, tables of features."""

from dataclasses import replace
from pathlib import Path

import torch

from scalar_sae.corpora import Corpus
from scalar_sae.evaluation.features.features import read_features
from scalar_sae.explorer.subject import PairSubject, Subject
from scalar_sae.saes.sources import Group
from scalar_sae.scoring.config import ScoreConfig, held_out
from scalar_sae.scoring.pair import Pair
from scalar_sae.scoring.score import score
from scalar_sae.sites import Block, Site
from tests.helpers import random_sae, tiny_lm

BLOCK = Block.parse("ff_block.0")
KEY, RANKING = f"m/{BLOCK}", "leave_one_out"
CONFIG = ScoreConfig(ranking=RANKING, prompts=3, rank_prompts=4, context=12)


NAME = "<i>small</i> run\u202e"


def small_subject(folder: Path, *, tables: bool = True) -> Subject:
    """A subject whose files lie in a folder."""
    lm = tiny_lm(d_vocab=128)
    group = Group({Site("resid_mid", 0): random_sae(16, 24, 4, 1), Site("resid_post", 0): random_sae(16, 20, 4, 2)})
    ids = torch.randint(32, 127, (600,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    corpus = Corpus("text", ids[:300], ids[300:], lm.tokenizer.fingerprint)
    pair = Pair.between(lm, BLOCK, group)
    record = score(pair, held_out(corpus, CONFIG), CONFIG, method="m")
    if tables:
        for site, sae in group.items():
            rows = ids[:240].long().view(-1, 12)
            read_features(lm, site, sae, rows, folder / "features" / "m" / str(site), n_examples=3, batch=2)
    subject = PairSubject(KEY, "m", BLOCK, group, (record,))
    return Subject(NAME, lm, lambda: corpus, {KEY: subject}, folder)


def two_pairs(subject: Subject) -> Subject:
    """The same model with a pair that has no record behind the pair that has one."""
    found = subject.pairs[KEY]
    group = Group({**found.group, Site("resid_mid", 1): random_sae(16, 22, 4, 3)})
    first, behind = replace(found, group=group), Block.parse("attn_block.1")
    pairs = {KEY: first, f"m/{behind}": PairSubject(f"m/{behind}", "m", behind, group, (found.records[0],))}
    return Subject(NAME, subject.lm, subject.read_text, pairs, subject.folder)
