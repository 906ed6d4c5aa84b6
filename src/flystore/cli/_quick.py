"""The arguments of a command, read without what Typer loads to read them: pydantic, a tenth of a service's start.

A service that has started keeps what its start loaded, so this is memory, too. Only the plain forms are read here; of
whatever else is typed, mistakes and ``--help`` among them, Typer says what there is to say.
"""

import inspect
import os
import re
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, get_args

import typer

_NUMBER = {int: re.compile("[0-9]{1,15}"), float: re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?")}


class _NotPlain(Exception):
    """Typer has to look at it."""


class _Parameter:
    """One option or argument of a command, as its function declares it.

    Attributes
    ----------
    letters : tuple of str
        The ways to give it; none for an argument.
    kind : type
        Of a value; bool takes none.
    many : bool
        Whether it may be repeated.
    """

    def __init__(self, name: str, parameter: inspect.Parameter) -> None:
        declared, (info, *_) = get_args(parameter.annotation)[0], parameter.annotation.__metadata__
        kinds = [kind for kind in get_args(declared) if kind is not NoneType]
        self.kind: Any = kinds[0] if kinds and not isinstance(declared, type) else declared
        self.many = getattr(self.kind, "__origin__", None) is list
        if self.many:
            (self.kind,) = get_args(self.kind)
        self.is_argument = isinstance(info, typer.models.ArgumentInfo)
        # Of an annotation, Typer takes the first letters for the default.
        letters = [text for text in (info.default, *(info.param_decls or ())) if isinstance(text, str)]
        self.letters = () if self.is_argument else tuple(letters) or ("--" + name.replace("_", "-"),)
        self.variable = info.envvar
        self._least, self._most = info.min, info.max

    def value_of(self, text: str) -> Any:
        """Return what a text comes to.

        Raises
        ------
        _NotPlain
            If it is none that everybody would read alike.
        """
        if not text or text.startswith("-"):
            raise _NotPlain
        if self.kind not in _NUMBER:
            return self.kind(text)
        if not _NUMBER[self.kind].fullmatch(text):
            raise _NotPlain
        number = self.kind(text)
        if (self._least is not None and number < self._least) or (self._most is not None and number > self._most):
            raise _NotPlain
        return number

    def from_variable(self) -> Any:
        """Return what the environment says; None if nothing."""
        text = os.environ.get(self.variable) if isinstance(self.variable, str) else None
        if not text:
            return None
        return [self.value_of(part) for part in text.split()] or None if self.many else self.value_of(text)


def plain_arguments(command: Callable[..., None], typed: Sequence[str]) -> dict[str, Any] | None:
    """Return what to call the function of a command with; None if Typer has to read what was typed.

    Parameters
    ----------
    command : function
        Its parameters are annotated as Typer wants them; of text, numbers, paths, lists of these, and flags.
    typed : sequence of str
        What stands behind the name of the command.
    """
    if "_FLYSTORE_COMPLETE" in os.environ:  # a shell asks how the line could go on
        return None
    parameters = {
        name: _Parameter(name, parameter) for name, parameter in inspect.signature(command).parameters.items()
    }
    try:
        found = _given(parameters, typed)
        for name, parameter in parameters.items():
            if name not in found and (value := parameter.from_variable()) is not None:
                found[name] = value
    except _NotPlain:
        return None
    return found


def _given(parameters: dict[str, _Parameter], typed: Sequence[str]) -> dict[str, Any]:
    named = {letters: name for name, parameter in parameters.items() for letters in parameter.letters}
    arguments = [name for name, parameter in parameters.items() if parameter.is_argument]
    found: dict[str, Any] = {}
    rest = iter(typed)
    for word in rest:
        letters, is_joined, text = word.partition("=") if word.startswith("--") else (word, "", "")
        if word.startswith("-"):
            name = named.get(letters, "")
        else:
            name, text, is_joined = arguments.pop(0) if arguments else "", word, "="
        if not name or (name in found and not parameters[name].many):
            raise _NotPlain
        parameter = parameters[name]
        if parameter.kind is bool:
            if is_joined:
                raise _NotPlain
            found[name] = True
            continue
        value = parameter.value_of(text if is_joined else next(rest, ""))
        if parameter.many:
            found.setdefault(name, []).append(value)
        else:
            found[name] = value
    return found
