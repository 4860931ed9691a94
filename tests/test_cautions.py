"""Each caution on both sides of its limit, on records that are made up, and what is said of a table of them."""

from typing import Any

import pytest

from scalar_sae.cautions import cautions, cautions_of
from scalar_sae.records.results import Floor, PromptCurves, Record, Results
from scalar_sae.report.model_card import model_card
from scalar_sae.report.page import render
from scalar_sae.saes.trained import Trained
from tests.scoring.test_compare import COUNTS, record


def sound(method: str = "topk", block: str = "ff_block.0", n_prompts: int = 20, **changes: Any) -> Record:
    """A record that nothing speaks against: a floor of 0.1 nats, 2.2 nats without edges, 72 prompts or fewer."""
    one = record(block, method, 30)
    fields = {name: getattr(one.prompts, name) for name in PromptCurves.model_fields}
    rows = {name: values for name, values in fields.items() if isinstance(values[0], list)}
    longer: dict[str, Any] = {name: (values * 3)[:n_prompts] for name, values in fields.items() if name not in rows}
    longer |= {name: [(row * 3)[:n_prompts] for row in values] for name, values in rows.items()}
    return one.model_copy(update={"prompts": PromptCurves(**longer), **changes})


def floor(kl: float) -> dict[str, Any]:
    return {"floor": Floor(kl=kl, ce_increase=0.0)}


def trained(steps: int, tokens: int, latents: int = 10) -> dict[str, Any]:
    long, short = Trained(steps=10**6, tokens=10**9, latents=10), Trained(steps=steps, tokens=tokens, latents=latents)
    return {"trained": {"up": long, "down": short}}


MISSED = Trained(steps=10**6, tokens=10**9, latents=10, wanted_l0=10.0, l0=84.0)
KL = {"kl_model": [4.0, *[1.0] * (len(COUNTS) - 1)]}
QUANTILES: dict[Any, Any] = {"50": 10.0, "90": 20.0, "99": 30.0}


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"n_prompts": 24}, {"rank_halves": {"faithful_at.80": (2.0, 1.0)}},
        {"n_prompts": 49, "edges_at": QUANTILES | {"99": None}},
        KL | floor(1.0), {"kl_model": [1.0, 0.5]} | floor(0.5), trained(1000, 1000),
        {"lowest_recovery": -0.1}, {"kl_model": [1.0, 0.19, 0.209, 0.1], "kl_mean": 1.0},
        {"dip": {"50": 0.5, "90": 0.01, "99": 0.5}}, {"n_edges": 1024}, {"trained": {}},
    ],
)  # fmt: skip
def test_nothing_is_said_at_the_limit(changes: dict[str, Any]):
    assert cautions(sound(**changes)) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_prompts": 19}, "Only 19 prompts were scored: not enough prompts for 95 % intervals, which need 20."),
        ({"n_prompts": 1}, "Only 1 prompt was scored"),
        ({"kl_model": [1.0, 0.5]} | floor(0.501), "The floor is more than half of the KL of the circuit without edges"),
        (KL | floor(1.01), "The floor is above 1 nat"),
        ({"edges_at": QUANTILES | {"90": None, "99": None}}, "Recovery never reaches 90 %"),
        ({"n_prompts": 50, "edges_at": QUANTILES | {"99": None}}, "Recovery never reaches 99 %"),
        ({"n_edges": 2000}, "The curve stops before all edges"),
        ({"dip": {"50": 0.0, "90": 0.011, "99": 0.0}}, "Recovery falls below 90 % again"),
        (
            {"faithful_at": {"50": 1.0, "80": None, "90": None}},
            "Faithfulness never reaches 80 %, at any count of the curve.",
        ),
        (
            {"faithful_at": {"50": 1.0, "80": None, "90": None}, "kl_mean": 0.4},
            "Faithfulness never reaches 80 %, because of the floor.",
        ),
        (
            {"kl_model": [1.0, 0.19, 0.22, 0.1], "kl_mean": 1.0},
            "Faithfulness falls below 80 % again at a larger count than faithful@80.",
        ),
        ({"rank_halves": {"faithful_at.80": (1.0, 2.1)}}, "Half of the ranking text gives more than 2 times as many"),
        ({"rank_halves": {"faithful_at.80": (1.0, None)}}, "Half of the ranking text gives more than 2 times as many"),
        ({"lowest_recovery": -0.11}, "Recovery falls below -0.1: some sub-circuits are worse"),
        (
            {"trained": {"up": MISSED, "down": MISSED}},
            "An SAE has an L0 of 84.0 on training text where 10 was asked for.",
        ),
        (trained(999, 1000), "The SAEs were trained for 999 steps: below 1,000"),
        (trained(1000, 999), "The SAEs were trained on 99.9 tokens a latent: below 100"),
    ],
)
def test_what_is_beyond_a_limit_is_said(changes: dict[str, Any], said: str):
    (only,) = cautions(sound(**changes))
    assert only.startswith(said)


def test_a_method_whose_paper_was_not_read_is_named_so():
    mine = Trained.of("atm", {"kept": {"step": 5000}, "seen": {"steps": 5000, "tokens": 10**9}}, 10)
    theirs = Trained.of("topk", {"kept": {"step": 5000}, "seen": {"steps": 5000, "tokens": 10**9}}, 10)
    assert mine is not None
    assert theirs is not None
    assert cautions(sound(trained={"up": theirs, "down": theirs})) == []
    (said,) = cautions(sound(trained={"up": theirs, "down": mine}))
    assert "our reading of a paper" in said


def test_a_floor_of_eight_nats_and_thirty_nine_steps_are_said_together():
    found = cautions(sound(n_prompts=2, **floor(8.0), **trained(39, 39 * 512, 512)))
    assert [sentence.split()[0] for sentence in found] == ["Only", "The", "The", "The", "The"]
    assert "trained for 39 steps" in found[3]
    assert "39.0 tokens a latent" in found[4]


def table() -> list[Record]:
    """Six rows: all with few prompts, one method with a high floor everywhere, another with a dip at one block."""
    blocks = ("ff_block.0", "ff_block.1", "ff_block.2")
    poor = [sound("relu", block, 5, **floor(1.5), **KL) for block in blocks]
    good = [sound("topk", block, 5) for block in blocks]
    good[1] = good[1].model_copy(update={"dip": {"50": 0.0, "90": 0.3, "99": 0.0}})
    return poor + good


def test_a_table_says_each_caution_once_with_its_rows():
    prompts, large, dip = cautions_of(table())
    assert prompts.endswith("which need 20. (all rows)")
    assert large.endswith(" (relu)")
    assert dip.endswith(" (topk at ff_block.1)")
    assert cautions_of([]) == []
    (alone,) = cautions_of([sound(n_prompts=3)])
    assert alone.endswith("which need 20.")


def test_rankings_and_controls_tell_rows_apart_where_not_all_of_them_are_meant():
    few: dict[str, Any] = {"n_prompts": 4}
    rows = [
        sound(), sound(ranking="local"), sound(ranking="local", block="ff_block.1", **few),
        sound(control="padded", **few),
        *(sound("relu", ranking=ranking, **few) for ranking in ("leave_one_out", "local")),
    ]  # fmt: skip
    (said,) = cautions_of(rows)
    assert said.endswith(" (topk, local at ff_block.1; topk, leave_one_out, padded; relu)")


def test_a_report_and_a_model_card_say_them_once():
    rows = [one.model_copy(update={"ranking": "leave_one_out_with_prior"}) for one in table()]
    never = {"50": 1.0, "80": None, "90": None}
    rows[0] = rows[0].model_copy(
        update={"edges_at": QUANTILES | {"90": None}, "faithful_at": never, "faithful_live_at": never}
    )
    page = render(Results(records=rows), {}, "run")
    card = model_card("me/mine", [], Results(records=rows))
    for text in (page, card):
        assert text.count("The floor is above 1 nat") == 1
        assert text.count("Only 5 prompts were scored") == 1
    assert page.count("<td>never<small>") == 3
    assert (
        render(Results(records=[sound(ranking="leave_one_out_with_prior")]), {}, "run").count('class="say caution"')
        == 0
    )


SEEN = {"steps": 400, "tokens": 204_800}


def test_the_training_behind_the_kept_weights_is_read_from_a_card():
    assert Trained.of("topk", {"seen": SEEN, "kept": {"step": 400}}, 512) == Trained(
        steps=400, tokens=204_800, latents=512
    )
    assert Trained.of("topk", {"seen": SEEN, "kept": {"step": 100, "val_loss": 1.0}}, 8) == Trained(
        steps=100, tokens=51_200, latents=8
    )


@pytest.mark.parametrize(
    "recipe", [{}, {"seen": SEEN}, {"seen": {"steps": "400", "tokens": 1}, "kept": {"step": 1}}, {"seen": None},
               {"seen": {"steps": 0, "tokens": 0}, "kept": {"step": 0}}, {"n_tokens": 10, "kept": {"step": 3}},
               {"seen": SEEN, "kept": {"step": True}}, {"seen": SEEN, "kept": {"step": 401}},
               {"seen": SEEN, "kept": {"step": -1}}],
)  # fmt: skip
def test_of_other_recipes_nothing_is_known(recipe: dict[str, Any]):
    assert Trained.of("topk", recipe, 8) is None
