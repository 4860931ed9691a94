"""The table of SAE methods. A new method adds its file, and an import and an entry here."""

from typing import Annotated, get_args

from pydantic import BaseModel, Field

from scalar_sae.saes.methods.batch_topk import BatchTopKConfig
from scalar_sae.saes.methods.gated import GatedConfig
from scalar_sae.saes.methods.jacobian import JacobianConfig
from scalar_sae.saes.methods.jumprelu import JumpReluConfig
from scalar_sae.saes.methods.llama_scope import LlamaScopeConfig
from scalar_sae.saes.methods.matryoshka import MatryoshkaConfig
from scalar_sae.saes.methods.relu import ReluConfig
from scalar_sae.saes.methods.staircase import StaircaseConfig
from scalar_sae.saes.methods.staircase_jacobian import StaircaseJacobianConfig
from scalar_sae.saes.methods.staircase_jumprelu import StaircaseJumpReluConfig
from scalar_sae.saes.methods.topk import TopKConfig
from scalar_sae.saes.methods.unverified.atm import ATMConfig
from scalar_sae.saes.methods.unverified.feature_choice import FeatureChoiceConfig
from scalar_sae.saes.methods.unverified.g_sae import GSAEConfig
from scalar_sae.saes.methods.unverified.mutual_choice import MutualChoiceConfig

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
    | GSAEConfig
    | ATMConfig,
    Field(discriminator="method"),
]

CONFIGS: dict[str, type[BaseModel]] = {
    config.model_fields["method"].default: config for config in get_args(get_args(MethodConfig)[0])
}
"""The config class of each method."""
