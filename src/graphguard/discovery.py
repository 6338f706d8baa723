"""Find what calls a model: chat models and graphs reachable from a node's runnable or function."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from langchain_core.language_models import BaseLanguageModel
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langgraph.pregel import Pregel
from langgraph.pregel.remote import RemoteGraph

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["evidence", "mentions", "models_in", "reach"]

_DEPTH: Final = 8
_LIBRARIES: Final = ("langchain_core", "langgraph", "langsmith", "pydantic", "openai", "anthropic", "httpx")
_OURS: Final = ("graphguard.middleware", "graphguard.fitting")  # may choose a model, but never call one themselves
_PLAIN: Final = (str, bytes, int, float, complex, bool, type(None), range, types.BuiltinFunctionType)


def evidence(thing: object) -> str | None:
    """Why `thing` is taken to call a model, in words; None when nothing says so.

    Args:
        thing: A node's runnable or function.

    >>> evidence(len) is None
    True
    """
    for found in _walk(thing):
        if isinstance(found, BaseLanguageModel):
            return f"holds the model {type(found).__name__}"
        if isinstance(found, (Pregel, RemoteGraph)):
            return f"runs the graph {found.name!r}{' on a server' if isinstance(found, RemoteGraph) else ''}"
        if isinstance(found, type):
            return f"makes a model of {found.__name__}"
        if _is_configurable(found):
            return "holds a model that is chosen at run time"
        return "makes a model with init_chat_model"
    return None


def models_in(thing: object) -> Iterator[object]:
    """The models that `thing` holds, without those inside graphs that it runs."""
    return (found for found in _walk(thing) if isinstance(found, BaseLanguageModel))


def mentions(thing: object, name: str) -> bool:
    """Whether functions of the user's that `thing` reaches use something of that name.

    >>> mentions(lambda: Mapping, "Mapping"), mentions(lambda: Mapping, "Iterator")
    (True, False)
    """
    functions = (found for found in reach(thing) if isinstance(found, types.FunctionType) and not _from_library(found))
    return any(name in _names(function.__code__) for function in functions)


def _walk(root: object) -> Iterator[object]:
    """Models, graphs, model classes and model factories reachable from `root`, nearest first."""
    return (thing for thing in reach(root) if _is_found(thing, root))


def _is_found(thing: object, root: object) -> bool:
    return _is_model(thing) and (thing is not root or not isinstance(thing, Pregel))


def reach(root: object) -> Iterator[object]:
    """What is reachable from `root`, nearest first, with models, graphs and tools but nothing inside of those."""
    seen: set[int] = set()
    level: list[object] = [root]
    for _ in range(_DEPTH):
        following: list[object] = []
        for thing in level:
            if id(thing) in seen or isinstance(thing, _PLAIN):
                continue
            seen.add(id(thing))
            yield thing
            # A tool's calls are the tool's business; they are held all the same.
            if not _is_found(thing, root) and not isinstance(thing, BaseTool):
                following += _inside(thing)
        level = following


def _is_model(thing: object) -> bool:
    if isinstance(thing, type):
        return issubclass(thing, BaseLanguageModel) and not inspect.isabstract(thing)
    if isinstance(thing, (BaseLanguageModel, Pregel, RemoteGraph)) or _is_configurable(thing):
        return True
    return isinstance(thing, types.FunctionType) and thing.__name__ == "init_chat_model"


def _is_configurable(thing: object) -> bool:
    # What init_chat_model gives when the model is chosen at run time; a private class, so known by its name.
    return isinstance(thing, Runnable) and type(thing).__name__ == "_ConfigurableModel"


def _inside(thing: object) -> Sequence[object]:  # noqa: PLR0911 - one line per kind of thing
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, types.MethodType):
        return [thing.__func__, thing.__self__]
    if isinstance(thing, types.FunctionType):
        return _of_function(thing)
    if isinstance(thing, Mapping):
        return list(thing.values())
    if isinstance(thing, (list, tuple, set, frozenset)):
        return list(thing)
    if isinstance(thing, (type, types.ModuleType)):
        return []
    if isinstance(thing, Runnable) or not _from_library(type(thing)):
        return [*_attributes(thing), *_of_class(type(thing)), vars(type(thing)).get("__call__")]
    return []


def _of_class(cls: type) -> list[object]:
    """Values that the user's classes hold for all their objects; not their methods."""
    own = (vars(base) for base in cls.__mro__ if base is not object and not _from_library(base))
    return [value for held in own for value in held.values() if isinstance(value, (Runnable, Mapping, list, tuple))]


def _of_function(function: types.FunctionType) -> list[object]:
    found: list[object] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # a name that is not bound yet
            continue
    if hasattr(function, "__wrapped__"):
        found.append(function.__wrapped__)
    if _from_library(function):
        return found
    names = _names(function.__code__)
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, types.ModuleType):
            if not value.__name__.startswith(_LIBRARIES):
                found += [getattr(value, attr) for attr in names if _own(value, attr)]
        elif value is not None:
            found.append(value)
    return found


def _own(module: types.ModuleType, name: str) -> bool:
    return not isinstance(vars(module).get(name), (types.ModuleType, type(None)))


def _names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= _names(const)
    return names


def _attributes(thing: object) -> list[object]:
    try:
        return list(vars(thing).values())
    except TypeError:  # no __dict__
        slots = getattr(type(thing), "__slots__", ())
        return [getattr(thing, name, None) for name in ((slots,) if isinstance(slots, str) else slots)]


def _from_library(thing: type | types.FunctionType) -> bool:
    return str(getattr(thing, "__module__", "")).startswith((*_LIBRARIES, *_OURS))
