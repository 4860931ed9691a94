"""The table of methods, and which of them are marked as unverified."""

from pathlib import Path

import pytest

from scalar_sae.saes.methods import unverified
from scalar_sae.saes.methods.registry import CONFIGS
from scalar_sae.saes.store import SaeCard, find_saes, notes, save_sae
from scalar_sae.training.config import TrainConfig
from scalar_sae.training.learner import learners
from tests.helpers import Shape
from tests.training.runs import SMALL
from tests.training.test_workers import METHODS


def test_the_folder_holds_the_methods_that_are_marked():
    folder = Path(unverified.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(unverified.UNVERIFIED)
    inside = {name for name, config in CONFIGS.items() if ".unverified." in config.__module__}
    assert inside == set(unverified.UNVERIFIED)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["method"])
def test_files_of_an_unverified_method_say_so(method: dict, tmp_path: Path):
    learner = learners(TrainConfig(saes=[method], **SMALL), Shape(16, 2))[0]
    site = learner.trainee.sites[0]
    sae = learner.trainee.sae(site)
    save_sae(sae, SaeCard.of(sae, learner.method.method, learner.method.name, site, {}), tmp_path / "sae")
    said = [note for note in notes(find_saes(tmp_path)) if "our reading" in note]
    assert bool(said) == (method["method"] in unverified.UNVERIFIED)
