"""The table of SAE methods: a new one adds its file and a line here."""

from typing import Annotated, get_args

from pydantic import BaseModel, Field

from scalar_sae.saes.batch_topk import BatchTopKConfig
from scalar_sae.saes.feature_choice import FeatureChoiceConfig
from scalar_sae.saes.gated import GatedConfig
from scalar_sae.saes.gradient import GradientConfig
from scalar_sae.saes.jacobian import JacobianConfig
from scalar_sae.saes.jumprelu import JumpReluConfig
from scalar_sae.saes.llama_scope import LlamaScopeConfig
from scalar_sae.saes.matryoshka import MatryoshkaConfig
from scalar_sae.saes.mutual_choice import MutualChoiceConfig
from scalar_sae.saes.relu import ReluConfig
from scalar_sae.saes.staircase import StaircaseConfig
from scalar_sae.saes.staircase_jacobian import StaircaseJacobianConfig
from scalar_sae.saes.staircase_jumprelu import StaircaseJumpReluConfig
from scalar_sae.saes.temporal import TemporalConfig
from scalar_sae.saes.topk import TopKConfig

MethodConfig = Annotated[
    TopKConfig
    | StaircaseConfig
    | JacobianConfig
    | StaircaseJacobianConfig
    | StaircaseJumpReluConfig
    | ReluConfig
    | GatedConfig
    | JumpReluConfig
    | BatchTopKConfig
    | MatryoshkaConfig
    | LlamaScopeConfig
    | MutualChoiceConfig
    | FeatureChoiceConfig
    | GradientConfig
    | TemporalConfig,
    Field(discriminator="method"),
]

CONFIGS: dict[str, type[BaseModel]] = {
    config.model_fields["method"].default: config for config in get_args(get_args(MethodConfig)[0])
}
"""The config class of each method."""
