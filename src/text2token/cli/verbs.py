"""Commands of several verbs, such as `lens read` and `lens pair`."""

from collections.abc import Mapping
from typing import Any, ClassVar

from typer.core import TyperGroup


class Verbs(TyperGroup):
    """A group whose verb may be left out.

    Then `default` is meant, or the verb that an option stood for before there were verbs: `earlier` has option → verb and
    what the option is called there.
    """

    default: ClassVar[str | None] = None
    earlier: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "--help"}:
            options = [option for option in self.earlier if option in args]
            if options:
                verb, option = self.earlier[options[0]]
                args = [verb, *(option if word == options[0] else word for word in args)]
            elif self.default:
                args = [self.default, *args]
        return super().parse_args(ctx, args)
