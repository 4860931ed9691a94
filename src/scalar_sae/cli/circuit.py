"""The verb `circuit`."""

import functools
from pathlib import Path
from typing import Annotated

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

app = typer.Typer()


@verb(app)
def circuit(
    saes: Saes,
    sites: Annotated[str, typer.Option(help="Sites along the residual stream, such as resid_pre.0,resid_post.0,...")],
    lm: Annotated[str | None, typer.Option(help="Language model, as for `scalar score`.")] = None,
    tokens: Text = None,
    allow_trained_text: AllowTrainedText = False,
    method: Annotated[
        str | None, typer.Option(help="The group of SAEs to score. By default all that have an SAE at every site.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts to score.", min=1)] = 10,
    rank_prompts: Annotated[int, typer.Option(help="Prompts to rank edges on.", min=1)] = 16,
    context: Annotated[int | None, typer.Option(help="Tokens per prompt.", min=2)] = None,
    ranking: Annotated[
        str | None,
        typer.Option(help="The name of a ranking. By default `leave_one_out_with_prior`; with --one-order, `fisher`."),
    ] = None,
    edges: Annotated[str, typer.Option(help="Edge counts: `full`, `coarse`, or numbers such as 1,2,4,8.")] = "coarse",
    one_order: Annotated[
        bool,
        typer.Option("--one-order", help="Rank the edges of all pairs together. By default each pair keeps as many."),
    ] = False,
    special: Special = None,
    memory: Memory = 8.0,
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
    """Score a circuit through several layers at once.

    Only the top edges of every pair are kept, and each pair reads what the pair before it leaves.

    Under `torchrun --no-python --nproc-per-node 2 scalar circuit ...` the processes share the prompts.

    Example: **scalar circuit --saes runs/quickstart --sites resid_pre.0,resid_post.0,resid_post.1**
    """
    from scalar_sae import distributed
    from scalar_sae.cautions import cautions_of
    from scalar_sae.console import Bar
    from scalar_sae.lm.special import parse_rule
    from scalar_sae.records.results import Results
    from scalar_sae.saes.sources import site_in
    from scalar_sae.scoring.chain import blocks_between
    from scalar_sae.scoring.circuit import circuit_ranking, score_circuit
    from scalar_sae.scoring.score import say_left_out
    from scalar_sae.sites import Site

    check_results(out)
    places = [Site.parse(name.strip()) for name in sites.split(",")]
    blocks_between(places)
    settings = {
        "ranking": ranking or ("fisher" if one_order else "leave_one_out_with_prior"),
        "rank_prompts": rank_prompts,
    }
    settings |= {"prompts": prompts, "edges": edges, "context": context, "memory": memory, "seed": seed}
    settings |= {"allow_trained_text": allow_trained_text}
    config = score_config(settings | {"special": parse_rule(special or "skip")})
    circuit_ranking(config.ranking, one_order)
    check_model_and_text(lm, dtype, tokens)
    distributed.init()
    ends = {str(place): functools.partial(site_in, site=place) for place in places}
    model, groups = subjects(lm, saes, method, device, dtype, ends)
    config, texts = prompts_of(tokens, model, saes, groups, method, config, context)
    say_left_out(model, texts, config)
    results = Results()
    total = len(groups) * (prompts + rank_prompts * (len(places) - 1))
    with making(out) as partial, Bar("circuit", total / distributed.world_size()) as bar:
        for name, group in groups.items():
            step = functools.partial(finished, bar, name)
            record = score_circuit(
                model, group, places, texts, config, one_order=one_order, method=name, on_progress=step, partial=partial
            )
            results.records.append(record)
        if out and distributed.rank() == 0:
            results.write(out)
    if distributed.rank() != 0:
        return None
    found = {"records": results.records, "cautions": cautions_of(results.records)}
    return Outcome(found, lambda: print_records(results.records))
