"""Options of `LanguageModel.load`."""

import pytest
import torch

from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel
from tests.lm.families import family_hf


def test_the_old_name_of_the_precision_is_refused_and_not_ignored():
    with pytest.raises(UserError, match="torch_dtype: the option is called dtype"):
        LanguageModel.load("python-stdlib", torch_dtype=torch.float32)


def test_a_model_in_float64_is_refused_before_its_activations_meet_saes_in_float32():
    with pytest.raises(UserError, match="computes in float64, and SAEs in float32; load it with dtype float32"):
        LanguageModel.load(family_hf("gpt2", torch.float64))
    with pytest.raises(UserError, match="float64"):
        LanguageModel.load("python-stdlib", dtype="float64")
