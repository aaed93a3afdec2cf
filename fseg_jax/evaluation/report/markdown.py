"""Tables in Markdown."""


def format_markdown_table(head: list[str], lines: list[list[str]]) -> list[str]:
    """Format a table in Markdown, a line of text a row.

    >>> format_markdown_table(["k", "F1"], [["16", "0.71"]])
    ['| k | F1 |', '| --- | --- |', '| 16 | 0.71 |']
    """
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines)]
