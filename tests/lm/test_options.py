"""Options of `LanguageModel.load`."""

import pytest
import torch

from scalar_sae.errors import UserError
from scalar_sae.lm.model import LanguageModel


def test_the_old_name_of_the_precision_is_refused_and_not_ignored():
    with pytest.raises(UserError, match="torch_dtype: the option is called dtype"):
        LanguageModel.load("python-stdlib", torch_dtype=torch.float32)
