"""What is done with a model beside scoring, on every family in every precision: training, cache, features."""
# pyright: reportUnknownLambdaType=false, reportPrivateUsage=false

from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from scalar_sae.activations.cache import CachedStream
from scalar_sae.activations.stream import ActivationStream
from scalar_sae.corpora import Corpus
from scalar_sae.evaluation.features.features import read_features
from scalar_sae.io import Events
from scalar_sae.lm.model import LanguageModel
from scalar_sae.saes.components.sparse import top_k
from scalar_sae.saes.methods.base import Progress, Weights, squared_error
from scalar_sae.saes.methods.jacobian import JacobianConfig
from scalar_sae.sites import Site
from scalar_sae.tokenizer import Ascii
from scalar_sae.training.config import TrainConfig, validated
from scalar_sae.training.cost import Cost
from scalar_sae.training.learner import learners
from scalar_sae.training.loop import train
from tests.helpers import random_sae
from tests.lm.families import DTYPES, FAMILIES, PARALLEL, family_lm, upcast

CONTEXT, WINDOWS = 8, 6
TEXT = torch.arange(CONTEXT * WINDOWS) * 11 % 64
PROMPTS = TEXT.view(WINDOWS, CONTEXT)
every_family = pytest.mark.parametrize("family", FAMILIES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def layers_of(hf: Any) -> Any:
    decoder = hf.get_decoder()
    return decoder.layers if hasattr(decoder, "layers") else decoder.h


def seen_by_hooks(hf: Any, tokens: torch.Tensor) -> dict[Site, torch.Tensor]:
    """What the layers of a model are handed and put out in its own forward."""
    seen: dict[Site, torch.Tensor] = {}

    def see(number: int):
        def hook(_module: object, args: Any, kwargs: Any, output: Any) -> None:
            seen[Site("resid_pre", number)] = (args[0] if args else kwargs["hidden_states"]).clone()
            seen[Site("resid_post", number)] = (output if isinstance(output, torch.Tensor) else output[0]).clone()

        return hook

    hooks = [layer.register_forward_hook(see(n), with_kwargs=True) for n, layer in enumerate(layers_of(hf))]
    with torch.no_grad():
        hf(tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return {site: x.float() for site, x in seen.items()}


@every_dtype
@every_family
def test_training_with_a_cache_gives_the_same_bytes_and_the_cache_holds_what_hooks_see(
    family: str, dtype: torch.dtype, tmp_path: Path
):
    lm = LanguageModel(family_lm(family, dtype, outlier=True).hf, family, Ascii())
    site, along = Site("resid_post", 1), "ff_layers" if family in PARALLEL else "ff_blocks"
    saes = [
        {"method": "g_sae", "sites": [str(site)], "k": 3, "expansion": 2},
        {"method": "jacobian", "along": along, "k": 3, "expansion": 2},
    ]
    content = {"tokens": 2 * len(TEXT), "batch_tokens": len(TEXT), "buffer_tokens": len(TEXT), "context": CONTEXT}
    config = validated(TrainConfig, {**content, "warmup_steps": 1, "validations": 0, "saes": saes}, "train")
    corpus, cache = Corpus("text", TEXT, TEXT[:CONTEXT], Ascii().fingerprint), tmp_path / "cache"
    in_no_time = mock.patch("scalar_sae.training.loop.cost", return_value=Cost(0, 0))  # which all precisions share
    with nullcontext() if dtype == torch.float32 else in_no_time:
        train(config, lm, corpus, tmp_path / "plain", Events(None))
    reads = sorted({read for learner in learners(config, lm, lm.device) for read in learner.trainee.reads}, key=str)
    filling = CachedStream(ActivationStream(lm, PROMPTS, reads, len(TEXT), seed=0), cache, 2).buffers()
    assert len([next(filling) for _ in range(2)]) == len(list(cache.glob("*.safetensors")))
    asked = mock.patch.object(ActivationStream, "buffers", side_effect=AssertionError("the model is asked again"))
    with asked, in_no_time:
        train(config, lm, corpus, tmp_path / "cached", Events(None), cache)
    written = sorted(path.relative_to(tmp_path / "plain") for path in tmp_path.glob("plain/saes/**/*.safetensors"))
    assert len(written) == 1 + 4
    assert all(
        (tmp_path / "plain" / path).read_bytes() == (tmp_path / "cached" / path).read_bytes() for path in written
    )
    windows, rows = (torch.randperm(n, generator=torch.Generator().manual_seed(s)) for s, n in ((0, WINDOWS), (1, 48)))
    kept = load_file(cache / "buffer-000000.safetensors")[str(site)]
    seen = seen_by_hooks(lm.hf, PROMPTS[windows])[site].flatten(0, 1)
    close: dict[str, Any] = (
        {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0, "rtol": 0}
    )  # by our own kernels
    torch.testing.assert_close(kept[rows], seen, **close)


@every_dtype
@every_family
def test_the_jacobian_term_is_that_of_the_models_modules_in_float32(family: str, dtype: torch.dtype):
    lm, parallel = family_lm(family, dtype, outlier=True), family in PARALLEL
    config = JacobianConfig(along="ff_layers" if parallel else "ff_blocks", k=4, expansion=2, weight=0.7)
    trainee = config.trainees(lm, 0)[1].eval()
    start, end = trainee.sites
    at = lm.activations(PROMPTS[:1, :3], [start, end])
    x, y = at[start][0], at[end][0]
    up, down = (Weights(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec) for sae in map(trainee.sae, trainee.sites))
    before, after = top_k(up, x, 4), top_k(down, y, 4)
    wide, total = upcast(family, dtype, outlier=True), 0.0
    for t in range(3):
        own = torch.autograd.functional.jacobian(
            lambda v: wide.run(start, end, v.view(1, 1, -1), x[:1, None])[0, 0], x[t]
        )
        full = (up.W_dec @ own.T @ down.W_enc)[before.latents[t]][:, after.latents[t]]
        total += full[before.acts[t] > 0][:, after.acts[t] > 0].abs().sum().item()
    assert total > 0
    with torch.no_grad():
        losses = trainee.losses({start: x, end: y}, Progress(9, 10))
    penalty = losses[end] - squared_error(y, after.decoded())
    assert penalty.item() == pytest.approx(0.7 * 16 / 4**2 * total / 3, rel=1e-4, abs=1e-6 * losses[end].item())


@every_dtype
@every_family
def test_features_are_those_of_the_activations_that_hooks_see(family: str, dtype: torch.dtype, tmp_path: Path):
    lm = LanguageModel(family_lm(family, dtype, outlier=True).hf, family, Ascii())
    site, sae = Site("resid_post", 1), random_sae(16, 12, 3, 0)
    read_features(lm, site, sae, PROMPTS, tmp_path / "sae", n_examples=2, batch=WINDOWS)
    latents, contexts = (
        pq.read_table(tmp_path / "sae" / f"{name}.parquet").to_pylist() for name in ("latents", "contexts")
    )
    acts = sae.encode(seen_by_hooks(lm.hf, PROMPTS)[site]).numpy()
    assert [row["density"] for row in latents] == pytest.approx((acts > 0).mean((0, 1)).tolist())
    assert [row["maximum"] for row in latents] == pytest.approx(acts.max((0, 1)).tolist(), rel=1e-5, abs=1e-5)
    for latent in range(12):
        top = [row for row in contexts if row["latent"] == latent and row["kind"] == "top"]
        values = [acts[row["prompt"], row["position"], latent] for row in top]
        assert values == pytest.approx(np.sort(acts[..., latent][acts[..., latent] > 0])[::-1][:2].tolist(), rel=1e-5)
        assert all(row["tokens"] == PROMPTS[row["prompt"]].tolist() for row in top)
    if dtype == torch.float32:
        direct = effects(lm.hf, sae.W_dec[0])
        assert latents[0]["promoted_by"] == pytest.approx(direct.sort(descending=True).values[:10].tolist(), abs=0.02)
        assert latents[0]["promoted_by"] == pytest.approx(direct[latents[0]["promoted"]].tolist(), abs=0.02)


def effects(hf: Any, direction: torch.Tensor) -> torch.Tensor:
    """How the logits of the prompts' last tokens move with the last layer's output, by a difference quotient."""
    logits: list[torch.Tensor] = []
    for step in (1e-3, -1e-3):

        def move(_module: object, _args: object, output: Any, step: float = step) -> Any:
            x = output if isinstance(output, torch.Tensor) else output[0]
            x = x + step * direction
            return x if isinstance(output, torch.Tensor) else (x, *output[1:])

        hook = layers_of(hf)[-1].register_forward_hook(move)
        with torch.no_grad():
            logits.append(hf(PROMPTS, use_cache=False).logits[:, -1].double())
        hook.remove()
    change = ((logits[0] - logits[1]) / 2e-3).mean(0)
    return (change - change.mean()).float()
