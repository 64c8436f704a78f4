"""Make the parts of pages that Sphinx adds: <!-- messages -->, <!-- options of jigsaw --> and others."""

import re

from docs.reference.generate.command_pages import commands_part
from docs.reference.generate.messages import messages_part
from docs.reference.generate.recipe_pages import common_part, options_of_recipes
from fastpsl.scripts.advice import listed

PARTS = {
    "messages": messages_part,
    "commands": commands_part,
    "common options": common_part,
    "advice": listed,
}
MARK = re.compile(rf"^<!-- (?:({'|'.join(PARTS)})|options of (.+)) -->$", re.MULTILINE)


def expanded(text: str) -> str:
    """Return a page with its parts in place of their marks."""
    return MARK.sub(lambda mark: PARTS[mark[1]]() if mark[1] else options_of_recipes(mark[2].split()), text)
