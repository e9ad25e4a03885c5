"""A document and a question become the tokens of a prompt: document first, prompt after, the document's end cut.

Templates are settings. `{document}` stands where the document goes, other names in braces are a task's own; with `chat`
the filled template is one message of a user, in the form of the tokenizer's chat template. The pieces before, in and
after the document are tokenised one by one, so that cutting the document moves no other token.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from msrnn_bench.datasets.chunks import bos_ids, tokenise
from msrnn_bench.errors import UsageError

TODAY = datetime(2024, 7, 26, 12, 0)  # for chat templates that print the date (Llama 3.1's own default day): noon, always
_PLACE = "\x02document\x03"  # where the document goes while a chat template is filled


@dataclass(frozen=True)
class Prompt:
    """Token ids: what stands before the document, the document as far as it fits, what stands after; `cut` tokens of
    the document were left out."""

    head: list[int]
    document: list[int]
    tail: list[int]
    cut: int = 0

    @property
    def ids(self) -> list[int]:
        return self.head + self.document + self.tail

    @property
    def reading(self) -> int:
        """How many tokens do not depend on the question."""
        return len(self.head) + len(self.document)


def check_template(template: str, fields: tuple[str, ...], *, document: bool = True) -> str:
    """The template, refused where it names what the task does not have or leaves out what it must show."""
    if not isinstance(template, str) or not template.strip():
        raise UsageError(f"task.prompt={template!r} must be a text")
    try:
        named = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise UsageError(f"task.prompt cannot be read ({error}); write a brace that is meant as one as {{{{ or }}}}") from error
    known = ({"document"} if document else set()) | set(fields)
    if named != known:
        missing, odd = sorted(known - named), sorted(named - known)
        what = [f"leaves out {', '.join(missing)}"] * bool(missing) + [f"names {', '.join(map(repr, odd))}"] * bool(odd)
        raise UsageError(
            f"task.prompt {' and '.join(what)}: it must name {', '.join(f'{{{n}}}' for n in sorted(known)) or 'nothing'}"
        )
    if document and template.count("{document}") != 1:
        raise UsageError("task.prompt must have the document once")
    return template


def frame(tokenizer: Any, template: str, *, chat: bool, bos: str = "auto", **fields: str) -> tuple[list[int], list[int]]:
    """The ids before and after the document. Raises UsageError where `chat` finds no chat template."""
    text = template.format(document=_PLACE, **fields)
    if chat:
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError("task.chat=true, but this model's tokenizer has no chat template: set task.chat=false")
        message = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, **dated(tokenizer))
    before, found, after = text.partition(_PLACE)
    if not found:
        before, after = "", text  # a prompt without a document is all tail
    mark = [] if chat else bos_ids(bos, tokenizer)
    read = _marked if chat else tokenise
    return mark + read(tokenizer, before), read(tokenizer, after)


_ASKS_DATE = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")


def dated(tokenizer: Any) -> dict[str, Any]:
    """For a chat template that asks for the date: the template with TODAY's written in, so that a cell's number is the
    same tomorrow, and the answers of a resumed one belong together. Nothing where it does not ask; a UsageError where
    how it asks cannot be read off the template."""
    if "strftime_now" not in str(getattr(tokenizer, "chat_template", None)):
        return {}
    fixed = _ASKS_DATE.sub(lambda asked: repr(TODAY.strftime(asked[2])), tokenizer.get_chat_template())
    if re.search(r"strftime_now\s*\(", fixed):
        raise UsageError(
            "this tokenizer's chat template computes the date in a way that cannot be fixed to one day, so that its numbers "
            "would change every day: write a date into chat_template, or leave chat templates off"
        )
    return {"chat_template": fixed}


def _marked(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text whose `<|...|>` are the chat template's marks."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []


def fit(head: list[int], document: list[int], tail: list[int], room: int) -> Prompt:
    """The prompt in `room` tokens: the document's end is what is cut (the paper, section 4.2: the prompt stays)."""
    left = room - len(head) - len(tail)
    if left < 0:
        raise UsageError(
            f"the prompt without its document has {len(head) + len(tail)} tokens, more than the {room} there is room for; "
            "shorten task.prompt, raise context or lower task.new_tokens"
        )
    return Prompt(head, document[:left], tail, max(0, len(document) - left))
