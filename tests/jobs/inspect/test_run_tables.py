"""The tables of a run in a terminal can be read at 80 columns."""

from io import StringIO

from rich.console import Console

from unicl_cli.jobs.inspect.run_tables import validation_lines, validation_tables

RECALLS = [f"{direction}_r{k}" for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10)]


def test_validations_with_many_figures_fit_80_columns():
    figures = dict.fromkeys(("top1", "top5", *RECALLS), 0.1234)
    own = figures | {f"raw_{name}": 0.5678 for name in figures}
    corpora = ("corpora/shapes", "corpora/digits")
    rows = [{"step": 12000, "entry": n, "corpus": c, "split": "test", **own} for n, c in enumerate(corpora)]
    facts = {"validations": rows}
    out = StringIO()
    for table in validation_tables(facts):
        Console(file=out, width=80).print(table)
    said = out.getvalue()
    assert said.count("12.3 %") == 2 * len(figures)
    assert "56.8" not in said
    assert "…" not in said
    for word in ("12,000", "corpora/shapes", "top-1", "top-5", "Validations, image to text", "R@10"):
        assert word in said
    assert len(validation_lines(facts)[0]) == 2 + 2 * len(figures)
