"""A run with feature tables and pages."""

from pathlib import Path

import pytest
import torch

from scalar_sae.lm.model import LanguageModel
from scalar_sae.lm.toy import toy_gpt
from scalar_sae.saes.store import SaeCard, save_sae
from scalar_sae.sites import Site
from tests.helpers import random_sae
from tests.test_study import scalar


@pytest.fixture(scope="session")
def features_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two SAEs on a toy model, and its pages."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    LanguageModel(toy_gpt(), "toy").hf.save_pretrained(folder / "lm")
    for number, site in enumerate((Site("resid_mid", 0), Site("resid_post", 0))):
        card = SaeCard.of(random_sae(64, 130, 3, number), "topk", "topk", site, {})
        save_sae(random_sae(64, 130, 3, number), card, folder / "saes" / "topk" / str(site))
    (folder / "text.txt").write_text("def f(x1):\n    return [x1 for Y in (2, 33)]\n" * 60)
    scalar("features", folder, "--tokens", folder / "text.txt", "--prompts", 24, "--context", 32, "--edge-prompts", 1)
    return folder
