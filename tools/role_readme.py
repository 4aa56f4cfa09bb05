#!/usr/bin/env python3
"""Write each role's README from its argument_specs; text above the table is kept.

Example:
    tools/role_readme.py
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import yaml

MARK = "<!-- made by tools/role_readme.py from meta/argument_specs.yml -->"


def row(name: str, option: dict[str, Any]) -> str:
    """Render one variable.

    Args:
        name: The variable's name.
        option: Its entry in argument_specs.

    Returns:
        A row of a Markdown table.
    """
    kind = f"{option['type']} of {option['elements']}" if "elements" in option else option["type"]
    default = option.get("default")
    shown = (
        "required" if option.get("required") else f"`{default if isinstance(default, str) else json.dumps(default)}`"
    )
    cells = [f"`{name}`", kind, shown, " ".join(option["description"].split())]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def render(role: pathlib.Path) -> str:
    """Render a role's README.

    Args:
        role: The role's directory.

    Returns:
        The text: what stood above the mark (or a title and a sentence), the mark, the table.
    """
    spec = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]
    readme = role / "README.md"
    head = (
        readme.read_text().split(MARK)[0] if readme.exists() else f"# {role.name}\n\n{spec['short_description']}.\n\n"
    )
    rows = [row(name, option) for name, option in spec["options"].items()]
    return "\n".join(
        [
            head + MARK,
            "",
            "| variable | type | default | meaning |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def main() -> int:
    """Write the README of each role."""
    for role in sorted((pathlib.Path(__file__).parents[1] / "roles").iterdir()):
        (role / "README.md").write_text(render(role))
    return 0


if __name__ == "__main__":
    sys.exit(main())
