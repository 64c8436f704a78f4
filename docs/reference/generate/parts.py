"""Make the parts of pages that Sphinx adds to the site: <!-- messages --> and <!-- commands -->."""

import re

from docs.reference.generate.command_pages import commands_part
from docs.reference.generate.messages import messages_part

PARTS = {"messages": messages_part, "commands": commands_part}


def expanded(text: str) -> str:
    """Return a page with its parts in place of their marks."""
    marks = re.compile(rf"^<!-- ({'|'.join(PARTS)}) -->$", re.MULTILINE)
    return marks.sub(lambda mark: PARTS[mark[1]](), text)
