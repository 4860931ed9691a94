"""The package refuses wrong types and shapes while the tests run: see typed.py."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from scalar_sae.kernels import linear
from scalar_sae.sites import Block, Site
from tests.typed import checked


@checked
def product(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"], square: bool = False) -> Float[Tensor, "n m"]:
    return (a @ b)[:1] if square else a @ b


@checked
def rows(a: Float[Tensor, "n k"], b: Float[Tensor, " k"]) -> Iterator[Tensor]:
    yield from a * b


@checked
def unknown_to_python(a: "Missing", b: int) -> "Missing":  # noqa: F821  # pyright: ignore
    return a


@checked
@dataclass
class Pair:
    n: int
    x: Float[Tensor, " n"]

    @checked
    def plus(self, other: "Pair") -> "Pair":
        return Pair(self.n + other.n, self.x)


def test_an_axis_has_one_size_in_a_call_and_may_have_another_in_the_next():
    assert product(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    assert product(torch.ones(4, 5), torch.ones(5, 2)).shape == (4, 2)
    for a, b, square in [
        (torch.ones(2, 3), torch.ones(4, 3), False),
        (torch.ones(2, 3), torch.ones(3, 4), True),
        (torch.ones(2, 3), torch.ones(3, 4).int(), False),
    ]:
        with pytest.raises(TypeCheckError):
            product(a, b, square)


def test_arguments_of_a_generator_are_checked():
    assert len(list(rows(torch.ones(2, 3), torch.ones(3)))) == 2
    with pytest.raises(TypeCheckError):
        rows(torch.ones(2, 3), torch.ones(2))


def test_fields_of_a_dataclass_are_checked_and_its_own_name_in_quotes_is_known():
    pair = Pair(1, torch.ones(2))
    assert pair.plus(pair).n == 2
    with pytest.raises(TypeCheckError):
        Pair("1", torch.ones(2))  # pyright: ignore
    with pytest.raises(TypeCheckError):
        Pair(1, torch.ones(2, 2))
    with pytest.raises(TypeCheckError):
        pair.plus(1)  # pyright: ignore


def test_what_only_a_type_checker_knows_may_be_anything():
    assert unknown_to_python("x", 1) == "x"
    with pytest.raises(TypeCheckError):
        unknown_to_python("x", "1")  # pyright: ignore


def test_functions_methods_and_dataclasses_of_the_package_are_checked():
    for wrong in [lambda: Site.parse(3), lambda: Block.of(3), lambda: Site("resid_mid", "2")]:  # pyright: ignore
        with pytest.raises(TypeCheckError):
            wrong()
    with pytest.raises(TypeCheckError):
        linear(torch.ones(2, 3), torch.ones(4, 3))
