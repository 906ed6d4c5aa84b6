"""``select_metadata``: a JMESPath expression over metadata, within bounds.

The language can double what it has at each step: ``[@,@]`` written forty times is two hundred characters, and a result
that no machine holds. So every step of evaluating it costs, and so does all that a step makes; what one request
may spend is a limit of the service.
"""

from typing import Any

import jmespath
import msgspec
from jmespath.functions import Functions, signature
from jmespath.visitor import Options, TreeInterpreter

from flystore.model.errors import InvalidRequest, TooLarge

MOST_LETTERS = 8192
"""Letters of an expression: the parser calls itself for each bracket."""


class Selection:
    """An expression that is applied to the metadata of the nodes of one request.

    Parameters
    ----------
    expression : str
        ``false`` stands for no metadata at all.
    most_steps : int
        What all its applications together may cost.

    Raises
    ------
    InvalidRequest
        If it is no expression.
    TooLarge
        If it is longer than `MOST_LETTERS`.
    """

    def __init__(self, expression: str, most_steps: int) -> None:
        self._nothing = expression.strip() == "false"
        self._left = self._most = most_steps
        if len(expression) > MOST_LETTERS:
            raise TooLarge(
                f"select_metadata has {len(expression)} letters; there may be {MOST_LETTERS}", limit=MOST_LETTERS
            )
        try:
            self._parsed = jmespath.compile(expression).parsed
        except (ValueError, RecursionError) as error:  # what jmespath raises is a ValueError
            raise InvalidRequest(f"select_metadata is no JMESPath expression: {error}", status=400) from error
        self._interpreter = _Counting(self)

    def __call__(self, metadata: dict[str, Any]) -> Any:
        """Return what the expression selects.

        Raises
        ------
        InvalidRequest
            If it cannot be applied.
        TooLarge
            If applying it costs more than is left.
        """
        if self._nothing:
            return None
        try:
            found = self._interpreter.visit(self._parsed, metadata)
            self.spend_on(found)
            msgspec.json.encode(found)
        except TooLarge:
            raise
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidRequest(f"select_metadata cannot be applied: {error}", status=400) from error
        return found

    def spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise TooLarge(
                f"evaluating select_metadata takes more than {self._most} steps; select less, or of fewer nodes",
                limit=self._most,
            )

    def spend_on(self, value: Any) -> None:
        """Spend as many steps as `value` has values, those counted again that are in it twice."""
        todo = [value]
        while todo:
            one = todo.pop()
            self.spend(1 + (len(one) // 64 if isinstance(one, str) else 0))
            if isinstance(one, dict):
                todo.extend(one.values())
            elif isinstance(one, list):
                todo.extend(one)


class _Counting(TreeInterpreter):
    def __init__(self, selection: Selection) -> None:
        super().__init__(Options(custom_functions=_Bounded(selection)))
        self._selection = selection

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        self._selection.spend(1)
        return super().visit(node, *args, **kwargs)

    def visit_flatten(self, node: Any, value: Any) -> Any:
        base = self.visit(node["children"][0], value)
        if not isinstance(base, list):
            return None
        self._selection.spend(sum(len(item) if isinstance(item, list) else 1 for item in base))
        flat: list[Any] = []
        for item in base:
            flat += item if isinstance(item, list) else [item]
        return flat


class _Bounded(Functions):
    """The functions of the language, where what they make costs; most make no more than they are given."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection

    def call_function(self, function_name: str, resolved_args: list[Any]) -> Any:
        for argument in resolved_args:
            if isinstance(argument, (list, dict, str)):
                self._selection.spend(len(argument) // (64 if isinstance(argument, str) else 1))
        return super().call_function(function_name, resolved_args)

    @signature({"types": ["string"]}, {"types": ["array-string"]})
    def _func_join(self, separator: str, parts: list[str]) -> str:
        self._selection.spend((len(separator) * len(parts) + sum(map(len, parts))) // 64)
        return separator.join(parts)

    @signature({"types": []})
    def _func_to_string(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        self._selection.spend_on(value)
        return msgspec.json.encode(value).decode()
