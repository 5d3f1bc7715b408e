"""docs/environment.md: the page lists exactly the variables of unicl that the code names."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
NAME = re.compile(r"\bUNICL_[A-Z_]+\b")


def test_the_page_lists_exactly_the_variables_of_the_code():
    code = [file.read_text(encoding="utf-8") for file in (ROOT / "unicl_cli").rglob("*.py")]
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert set(NAME.findall(" ".join(rows))) == set(NAME.findall("\n".join(code)))
