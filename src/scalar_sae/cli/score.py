"""The verb `score`."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalar_sae.cli.outputs import check_results, making
from scalar_sae.cli.subjects import (
    AllowTrainedText,
    Device,
    Dtype,
    Memory,
    Saes,
    Special,
    Text,
    check_model_and_text,
    finished,
    prompts_of,
    score_config,
    subjects,
)
from scalar_sae.cli.tables import print_records
from scalar_sae.cli.verbs import Outcome, verb

if TYPE_CHECKING:
    from scalar_sae.saes.sources import Find
    from scalar_sae.sites import Block

app = typer.Typer()


@verb(app)
def score(
    saes: Saes,
    block: Annotated[
        str,
        typer.Option(
            help="The block to score: `ff_block.0`, `transformer_block.2`, `ff_layer.1`, `resid_pre.0->resid_post.1`."
        ),
    ],
    lm: Annotated[
        str | None,
        typer.Option(
            help="Language model: a folder, a Hub id or a shipped name. By default the one stored with the SAEs."
        ),
    ] = None,
    tokens: Text = None,
    allow_trained_text: AllowTrainedText = False,
    method: Annotated[
        str | None, typer.Option(help="The group of SAEs to score, if there are several. By default all.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts to score.", min=1)] = 50,
    rank_prompts: Annotated[
        int | None,
        typer.Option(
            help="Prompts to rank edges on. They are not scored. By default 64; with --published the authors' 576, "
            "some of which are scored.",
            min=1,
        ),
    ] = None,
    rank_halves: Annotated[
        bool,
        typer.Option(
            "--rank-halves",
            help="Also rank on each half of the ranking prompts, so that intervals include the error of the ranking "
            "text. Scoring takes up to three times as long.",
        ),
    ] = False,
    context: Annotated[
        int | None, typer.Option(help="Tokens per prompt; by default 128, or all that the model reads.", min=2)
    ] = None,
    ranking: Annotated[
        str | None,
        typer.Option(
            help="How edges are ranked: `leave_one_out_with_prior` (the default), `leave_one_out`, `fisher`, "
            "`shapley`, `ig`, `published` or `random`. `local` chooses edges at every token. A path reads the scores "
            "of edges from a file."
        ),
    ] = None,
    edges: Annotated[
        str | None,
        typer.Option(help="Edge counts: `full` (the default), `coarse`, `published`, or numbers such as 1,2,4,8."),
    ] = None,
    ablation: Annotated[
        str | None,
        typer.Option(
            help="The value of an ablated latent: `mean` (the default), `zero`, `resample` (its activation at a random "
            "token of the ranking text) or `adversarial` (the worst of eight such tokens)."
        ),
    ] = None,
    published: Annotated[
        bool,
        typer.Option("--published", help="Score as the authors' code does: its ranking, counts, conventions and text."),
    ] = False,
    special: Special = None,
    memory: Memory = 8.0,
    control: Annotated[
        str | None,
        typer.Option(
            help="Score a control instead: `padded` adds dead latents, `shuffled` shuffles the model's weights."
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    seed: Annotated[
        int, typer.Option(help="Seed of the choice of prompts, the order of ties and the bootstrap.", min=0)
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="JSON file for the records. The same command continues a scoring that was stopped."),
    ] = None,
) -> Outcome | None:
    """Score the interaction of SAEs across one block.

    Under `torchrun --no-python --nproc-per-node 2 scalar score ...` the processes share the groups of
    SAEs, then the prompts.

    Example: **scalar score --saes runs/quickstart --block ff_block.0 --prompts 10**
    """
    from scalar_sae import distributed
    from scalar_sae.cautions import cautions_of
    from scalar_sae.console import Bar
    from scalar_sae.lm.special import parse_rule
    from scalar_sae.records.results import Record, Results
    from scalar_sae.scoring.pair import Pair
    from scalar_sae.scoring.score import say_left_out
    from scalar_sae.scoring.score import score as run
    from scalar_sae.sites import Block

    check_results(out)
    place = Block.parse(block)
    settings = {"ranking": ranking, "rank_prompts": rank_prompts, "prompts": prompts, "context": context}
    settings |= {"edges": edges, "ablation": ablation, "memory": memory, "seed": seed, "control": control}
    settings |= {"allow_trained_text": allow_trained_text, "rank_halves": rank_halves}
    settings |= {"special": None if special is None else parse_rule(special)}
    config = score_config(settings, published=published)
    check_model_and_text(lm, dtype, tokens)
    distributed.init()
    model, chosen = subjects(lm, saes, method, device, dtype, ends(place))
    pairs = {name: Pair.between(model, place, group) for name, group in chosen.items()}
    config, texts = prompts_of(tokens, model, saes, chosen, method, config, context)
    say_left_out(model, texts, config)
    results = Results()
    total = sum(distributed.shares(len(pairs))) * config.steps(config.n_rank_prompts, config.prompts)
    with making(out) as partial, Bar("score", total) as bar:

        def record(name: str) -> Record:
            step = functools.partial(finished, bar, name)
            return run(pairs[name], texts, config, method=name, on_progress=step, partial=partial)

        for some in distributed.run_jobs(list(pairs), record):
            results.records += some
        if out and distributed.rank() == 0:
            results.write(out)
    if distributed.rank() != 0:
        return None
    found = {"records": results.records, "cautions": cautions_of(results.records)}
    return Outcome(found, lambda: print_records(results.records))


def ends(place: "Block") -> "dict[str, Find]":
    """How to find the SAEs at both ends of a block; upstream may stand a transcoder that writes there."""
    from scalar_sae.saes.sources import site_in
    from scalar_sae.scoring.pair import upstream

    up, down = place.up, place.down
    return {str(up): lambda group: upstream(group, up), str(down): lambda group: site_in(group, down)}
