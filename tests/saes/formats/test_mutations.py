"""Whatever is changed in somebody's files, an SAE computes the same or the files are refused by name in one line.

Every sample of every format: each field of its configs is deleted, given other types and another value, and joined by
an unknown one; each tensor is dropped, given other types and shapes, and joined by an unknown one.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from scalar_sae.errors import UserError
from scalar_sae.saes.formats.detect import FORMATS as KNOWN
from scalar_sae.saes.store import OWN, SaeCard, find_saes, placed, save_sae
from scalar_sae.sites import Site
from tests.helpers import random_sae, seal_again
from tests.saes.formats.test_formats import FORMATS, D, F, Weights, gpt_circuits_case, jacobian_pair

PEERS = Path(__file__).parent / "peers"
X = 2 * torch.randn(10, D, generator=torch.Generator().manual_seed(4)) + 0.3
Numbers = dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]
Write = Callable[[Path], object]


def own(path: Path) -> None:
    for layer, kind in enumerate(("jumprelu", "groupmax")):
        sae = random_sae(D, F, 4, 0, kind)
        save_sae(sae, SaeCard.of(sae, "topk", kind, Site("resid_post", layer), {"note": 1}), path / kind)


def samples() -> dict[str, Write]:
    def in_float32(write: Callable[[Path, Weights], object]) -> Write:
        return lambda path: write(path, Weights(torch.float32))

    def of_variant(variant: str) -> Write:
        return lambda path: gpt_circuits_case(path, Weights(torch.float32), variant, by_key=variant == "topk")

    def copy_of(case: Path) -> Write:
        return lambda path: shutil.copytree(case, path / case.name)

    variants = ("topk", "gated", "standard_v2", "jumprelu_staircase", "topk_staircase", "staircase_block")
    of_peers = (
        "saelens/standard-layer-norm", "saelens/topk-by-decoder-norm", "saelens/gated",
        "saelens/jumprelu_skip_transcoder", "saelens/batchtopk-by-decoder-norm-checkpoint",
        "saelens/whitening-checkpoint", "sparsify/h.2.attn", "sparsify/h.2.mlp", "dictionary_learning/AutoEncoder",
        "dictionary_learning/GatedAutoEncoder", "dictionary_learning/JumpReluAutoEncoder",
        "dictionary_learning/MatryoshkaBatchTopKSAE",
    )  # fmt: skip
    return {
        "own": own,
        "jacobian-saes": in_float32(jacobian_pair),
        **{name: in_float32(write) for name, (write, _, _) in FORMATS.items()},
        **{f"gpt-circuits {variant}": of_variant(variant) for variant in variants},
        **{case: copy_of(PEERS / case) for case in of_peers},
    }


SAMPLES = samples()

DEFINES = {
    "the rule": "k top_k activation act_fn architecture activation_fn_str sae_type dict_class sae_variant "
    "jump_relu_threshold",
    "what is done to the input": "apply_b_dec_to_input apply_decoder_bias_to_pre_encoder input_unit_norm norm "
    "normalize_activations norm_activation in out scaling_factor dataset_average_activation_norm eps kind",
    "how latents are selected": "rescale_acts_by_decoder_norm sparsity_include_decoder_norm",
    "where it reads and writes": "hook_name hook_name_out hook_point hook_point_in hook_point_out layer submodule_name "
    "feature_input_hook feature_output_hook sae_keys hf_hook_point_in hf_hook_point_out transcode site writes",
    "how wide chunks are": "chunks n_features",
}
"""Fields that say what an SAE is: another value, of the right type, is another SAE."""
DEFINING = {name for names in DEFINES.values() for name in names.split()}

ABSENT = {
    "rescale_acts_by_decoder_norm": "SAELens 6.0 to 6.13 had none and did not rescale",
    "apply_b_dec_to_input": "SAELens up to 0.3 had none and subtracted b_dec",
    "input_unit_norm": "BatchTopK takes an absent one for false",
    "layer": "dictionary_learning: another name gives the site, or none does",
    "submodule_name": "dictionary_learning: the layer gives the site then",
    "hook_point_out": "OpenMOSS: an SAE, which writes where it reads",
    "hf_hook_point_out": "Gemma Scope 2: an SAE, which writes where it reads",
    "sae_keys": "gpt-circuits: older files have none, the variant says it",
    "writes": "our own: an SAE, which writes where it reads",
    "norm": "our own: none",
    "chunks": "our own: none",
    "threshold": "dictionary_learning's BatchTopK had none at first: read as TopK, with a remark",
    "W_skip activation_function.threshold": "circuit-tracer: what is there says what the transcoder is",
}
"""Fields and tensors whose absence has a meaning of its own in a format."""
MEANINGFUL = {name for names in ABSENT for name in names.split()}

OTHER_WORDS = {
    "W_enc b_enc W_dec b_dec W_skip threshold log_jumprelu_threshold gate_bias b_gate r_mag": "shapes, in our names",
    "activation_function.log_jumprelu_threshold": "a shape",
    "d_in d_model d_out act_size activation_dim n_features k": "widths",
    "use_decoder_bias affine_connection skip_connection": "whether a tensor should be there",
    "activation reads": "the rule, the site",
}
"""What a refusal may name instead of the field or tensor that was changed."""
DAMAGED = "damaged (its SHA-256 is not that of what was written)"
"""What our own format says of weights that are not those of its card."""


def numbers(root: Path) -> Numbers:
    found: Numbers = {}
    for one in find_saes(root):
        reads, sae = placed(one.found)
        if sae.d_model != D:
            raise UserError(f"W_enc reads {sae.d_model} dimensions, the model has {D}")  # as Pair does
        acts = sae.encode(X)
        found[str(reads), str(sae.writes)] = acts, sae.decode(acts, X)
    return found


class Tampering:
    """A folder of SAEs whose files are changed one after the other."""

    def __init__(self, root: Path, write: Write) -> None:
        self.root, self.wrong = root, list[str]()
        write(root / "saes")
        self.before = numbers(root)

    def check(self, what: str, names: list[str], *accepted: str) -> None:
        """Compare with the untouched files: `same`, `other numbers`, or `refused` in a line with one of the names."""
        got = self.outcome([*names, *(word for words in OTHER_WORDS for word in words.split())])
        if got not in accepted:
            self.wrong.append(f"{what}: {got}")

    def outcome(self, names: list[str]) -> str:
        try:
            after = numbers(self.root)
        except UserError as error:
            said = str(error).replace(str(self.root), "")
            named = any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said) for name in names)
            return "refused" if named and "\n" not in said else f"refused in other words: {said}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        same = self.before.keys() == after.keys() and all(
            torch.equal(a, b) for key in after for a, b in zip(self.before[key], after[key], strict=True)
        )
        return "same" if same else "other numbers"

    def finish(self) -> None:
        assert self.outcome([]) == "same"
        assert not self.wrong, "\n".join(self.wrong)


def places(content: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The path and value of every field, nested ones too."""
    for key, value in content.items():
        yield (*above, key), value
        if isinstance(value, dict):
            yield from places(value, (*above, key))


def with_field(content: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy with another value at a place; `...` deletes it."""
    key, *rest = place
    changed = dict(content)
    if rest:
        changed[key] = with_field(content[key], tuple(rest), value)
    elif value is ...:
        del changed[key]
    else:
        changed[key] = value
    return changed


def of_other_types(value: Any) -> list[Any]:
    wrong: list[Any] = [[1, "a"], math.nan, "32" if not isinstance(value, str) else 7]
    return [*wrong, *([] if isinstance(value, bool) else [True])]


def another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return 2 * value + 1
    return f"{value}x" if isinstance(value, str) else ...


@pytest.mark.parametrize("name", SAMPLES)
def test_fields(name: str, tmp_path: Path):
    tampering = Tampering(tmp_path / "root", SAMPLES[name])
    for config in [path for pattern in ("*.json", "*.yaml") for path in sorted(tmp_path.rglob(pattern))]:
        text = config.read_text()
        read, write = (yaml.safe_load, yaml.safe_dump) if config.suffix == ".yaml" else (json.loads, json.dumps)
        content = read(text)
        for place, value in places(content):
            within = [deeper[-1] for deeper, _ in places(value)] if isinstance(value, dict) else []
            may_change = {*place} & {*DEFINING, "recipe"} != set()
            changes = [(..., place[-1] in MEANINGFUL), *((other, "recipe" in place) for other in of_other_types(value))]
            changes += [] if another(value) is ... else [(another(value), may_change)]
            for other, allowed in changes:
                config.write_text(write(with_field(content, place, other)))
                accepted = ("same", "refused", *(["other numbers"] if allowed else []))
                names = [*place, *within, str(other), *([DAMAGED] if place == ("sha256",) else [])]
                tampering.check(f"{config.name}: {'.'.join(place)} = {other}", names, *accepted)
        config.write_text(write({**content, "thing_of_the_future": 2.5}))
        tampering.check(f"{config.name}: an unknown field", ["thing_of_the_future"], "refused")
        config.write_text(text)
    tampering.finish()


def read_file(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path)


def write_file(path: Path, content: dict[str, Any]) -> None:
    if path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in content.items()})
    elif path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, path)
    else:
        torch.save(content, path)


def changed_tensors(value: torch.Tensor, suffix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor with other types and shapes."""
    others = {"int32": value.int(), "bool": value > 0, "complex64": value.to(torch.complex64)}
    if suffix != ".npz":
        others["float8"] = value.float().to(torch.float8_e4m3fn)
    if value.is_floating_point() and value.dim():
        others["NaN"] = torch.full_like(value, torch.nan)
    others |= {"with an axis more": value.unsqueeze(0), "flat": value.flatten()}
    if value.dim():
        others["shorter"] = value[:-1]
    for change, other in others.items():
        if other.dtype != value.dtype or other.shape != value.shape or change == "NaN":
            yield change, other


@pytest.mark.parametrize("name", SAMPLES)
def test_tensors(name: str, tmp_path: Path):
    tampering = Tampering(tmp_path / "root", SAMPLES[name])
    for path in sorted(path for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".npz", ".pt")):
        whole, content = path.read_bytes(), read_file(path)
        place = ("ae",) if "ae" in content else ()  # of a training state
        inner = content["ae"] if place else content
        for tensor, value in list(inner.items()):
            if not isinstance(value, torch.Tensor):
                continue
            for change, other in [("dropped", ...), *changed_tensors(value, path.suffix)]:
                allowed = change == "dropped" and tensor in MEANINGFUL
                write_file(path, with_field(content, (*place, tensor), other))
                if name == "own":
                    tampering.check(f"{path.name}: {tensor} {change}, unsealed", [DAMAGED], "refused")
                    seal_again(path.parent)
                accepted = ("same", "refused", *(["other numbers"] if allowed else []))
                tampering.check(f"{path.name}: {tensor} {change}", [tensor], *accepted)
        write_file(path, with_field(content, (*place, "tensor_of_the_future"), torch.ones(F)))
        if name == "own":
            tampering.check(f"{path.name}: an unknown tensor, unsealed", [DAMAGED], "refused")
            seal_again(path.parent)
        tampering.check(f"{path.name}: an unknown tensor", ["tensor_of_the_future"], "refused")
        path.write_bytes(whole)
        if name == "own":
            seal_again(path.parent)
    tampering.finish()


def test_every_format_has_a_sample(tmp_path: Path):
    seen: set[str] = set()
    for name, write in SAMPLES.items():
        write(tmp_path / name)
        seen |= {one.format for one in find_saes(tmp_path / name)}
    assert seen == {format_.name for format_ in (OWN, *KNOWN)}


def test_a_field_that_is_said_twice_is_refused(tmp_path: Path):
    jacobian_pair(tmp_path, Weights(torch.float32))
    config = tmp_path / "cfg.json"
    config.write_text(config.read_text().replace('"d_in": 6', '"d_in": 6, "d_in": 6'))
    with pytest.raises(UserError, match="d_in twice"):
        numbers(tmp_path)


def test_a_folder_whose_config_was_lost_is_not_passed_over(tmp_path: Path):
    own(tmp_path)
    (tmp_path / "jumprelu" / "sae.json").unlink()
    with pytest.raises(UserError, match=r"jumprelu: holds sae.safetensors, and no config that says what it is"):
        numbers(tmp_path)
