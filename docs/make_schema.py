"""Write docs/results.schema.json from the code: python docs/make_schema.py."""

import json
from pathlib import Path

from scalar_sae import Results

text = json.dumps(Results.model_json_schema(), indent=1)
(Path(__file__).parent / "results.schema.json").write_text(text + "\n", encoding="utf-8")
