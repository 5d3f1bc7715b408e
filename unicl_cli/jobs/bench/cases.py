"""Selection of the cases that a request measures; a kind's module is imported only here."""

from importlib import import_module

from unicl_cli.jobs.bench.kinds import Request, choose_rows
from unicl_cli.jobs.bench.protocol import Case


def select_cases(request: Request) -> list[Case]:
    """Return the cases of a request, in order; nothing is built yet."""
    module = "recipe" if request.recipe is not None else request.kind
    cases: list[Case] = import_module(f"unicl_cli.jobs.bench.{module}").cases(request)
    chosen = choose_rows(request, [case.name for case in cases])
    return [case for case in cases if case.name in chosen and (request.only or request.every or not case.extra)]
