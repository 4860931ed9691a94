"""What is published of a run: its SAEs in our own format, its records, and a model card.

Strangers read it, so keys, tokens and the places of files on this machine are taken out first (redaction.py).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scalar_sae.errors import UserError
from scalar_sae.records.results import Results
from scalar_sae.redaction import published
from scalar_sae.report.model_card import model_card
from scalar_sae.saes.export import export
from scalar_sae.saes.formats.detect import Located


def stage(folder: Path, repository: str, located: Sequence[Located], results: Results | None) -> None:
    """Write what is to be published into a new folder.

    Args:
        folder: must not be there yet.
        repository: `owner/name`.
        located: the SAEs.
        results: what was measured of them, if anything was.

    Raises:
        UserError: two records differ in the folder of their ranking alone, which is not published.
    """
    located = [one._replace(found=replace(one.found, recipe=published(one.found.recipe))) for one in located]
    if results is not None:
        results = Results.model_validate(published(results.model_dump(mode="json")))
        keys = [record.key for record in results.records]
        for key in set(keys):
            if keys.count(key) > 1:
                raise UserError(
                    f"{', '.join(map(str, key))}: two records have these names; rename their rankings' files"
                )
    export(located, "scalar", folder)
    (folder / "README.md").write_text(model_card(repository, located, results), encoding="utf-8")
    if results is not None:
        results.write(folder / "results.json")
