"""Tables in Markdown that a tool makes and keeps between two marks of a page that people write.

``<!-- table NAME: made by ... -->`` and ``<!-- end of table NAME -->``; what is between them is the tool's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Render a table.

    Args:
        titles: The columns' titles.
        rows: The cells of each row.

    Returns:
        Markdown, without a newline at the end.
    """
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _part(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- table {name}: [^>]*-->\n)(.*?)(<!-- end of table {name} -->)", re.DOTALL)


def table_in(text: str, name: str) -> str:
    """Take a table out of a page.

    Args:
        text: The page.
        name: The table's name.

    Raises:
        ValueError: There are no marks for it.
    """
    found = _part(name).search(text)
    if not found:
        message = f"there are no marks for table {name}: <!-- table {name}: ... --> <!-- end of table {name} -->"
        raise ValueError(message)
    return found[2].strip()


def written(text: str, shown: Mapping[str, str]) -> str:
    """Put tables between their marks.

    Args:
        text: The page.
        shown: Name to table.

    Returns:
        The new page.
    """
    for name, made in shown.items():
        table_in(text, name)
        begin, end = text.index(f"<!-- table {name}:"), text.index(f"<!-- end of table {name} -->")
        begin = text.index("-->", begin) + len("-->")
        text = f"{text[:begin]}\n\n{made}\n\n{text[end:]}"
    return text
