"""While the tests run, functions of the package refuse arguments and results that are not what their annotations say.

`install` puts the decorator `checked` before every function and dataclass of the package as it is imported. beartype
checks types; of tensors, jaxtyping checks the shapes. jaxtyping has an import hook of its own, which took up to two
thirds of the time of the tests: it binds the arguments of each call to a signature, checks them twice, compiles the
checks of inner functions in each call of the outer one, and hides the bytecode of the libraries that the package loads.
"""

import ast
import inspect
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, get_args, get_type_hints

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError, jaxtyped

_NAME = "checked_in_tests"  # of the decorator, in the modules of the package
_beartyped = beartype(conf=BeartypeConf(violation_type=TypeCheckError))


def install() -> None:
    """Check the package from now on. Call it before the package is imported."""
    sys.meta_path.insert(0, _Finder())


def checked(target: Any) -> Any:
    """The function, or the dataclass with its `__init__`, with types and shapes checked."""
    if inspect.isclass(target):
        if is_dataclass(target) and "__init__" in vars(target):
            target.__init__ = checked(target.__init__)
        return target
    own_class = target.__qualname__.split(".")[0]
    try:
        hints = get_type_hints(target, localns={own_class: object})
    except NameError:  # a name that only a type checker imports
        return jaxtyped(target, typechecker=beartype)  # takes what it does not know for Any
    if inspect.isgeneratorfunction(target):
        return jaxtyped(target, typechecker=beartype)  # beartype alone would check what is yielded, outside of a scope
    function = _beartyped(target)
    return _in_a_scope(function) if any(map(_names_axes, hints.values())) else function


def _in_a_scope(function: Any) -> Any:
    @wraps(function)
    def scoped(*arguments: Any, **named: Any) -> Any:
        with jaxtyped("context"):  # an axis has one size in it
            return function(*arguments, **named)

    return scoped


def _names_axes(annotation: Any) -> bool:
    is_array = isinstance(annotation, type) and issubclass(annotation, AbstractArray)
    return is_array or any(map(_names_axes, get_args(annotation)))


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname.split(".")[0] != "scalar_sae":
            return None
        spec: ModuleSpec | None = PathFinder.find_spec(fullname, path, target)
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = _Decorating().visit(ast.parse(self.get_data(path)))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[_NAME] = checked
        super().exec_module(module)


class _Decorating(ast.NodeTransformer):
    """Other decorators get the function as it is checked, and the class before it is."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:  # and not what is within it
        node.decorator_list.append(ast.Name(_NAME, ast.Load()))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.decorator_list.insert(0, ast.Name(_NAME, ast.Load()))
        return node
