"""The rows of a kind: its module is imported when it is asked for."""

from importlib import import_module

from unicl_cli.jobs.bench.kinds import Asked, chosen
from unicl_cli.jobs.bench.protocol import Case


def cases_of(asked: Asked) -> list[Case]:
    """What a request measures, in order; nothing is built yet."""
    module = "recipe" if asked.recipe is not None else asked.kind
    cases: list[Case] = import_module(f"unicl_cli.jobs.bench.{module}").cases(asked)
    wanted = chosen(asked, [case.name for case in cases])
    return [case for case in cases if case.name in wanted and (asked.only or asked.every or not case.extra)]
