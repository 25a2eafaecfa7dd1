"""What a template did to the messages that nobody can have meant: left out, written twice, moved."""

import json
import re
from collections import Counter

from sftray.train_fn.chat_check import RenderedChat, refuse
from sftray.train_fn.chat_frame import Frame
from sftray.train_fn.chat_marks import CLOSE, OPEN
from sftray.train_fn.errors import Problem

_SYSTEM = ("system", "developer")  # several templates move these into a user's turn
_SPAN = re.compile(f"{OPEN}[^{CLOSE}]*{CLOSE}")


def find_fault(frame: Frame, chat: RenderedChat, counts: Counter[str]) -> Problem | None:
    """The first such fault.

    Adds to `counts`: reasoning_left_out and text_left_out, messages of which the template writes no reasoning, or
    only the tool calls. Many do so on purpose.
    """
    return _find_moved(chat) or _find_left_out(chat, counts) or _find_tool_fault(frame, chat)


def _find_moved(chat: RenderedChat) -> Problem | None:
    if chat.view is None or chat.view.spans == sorted(set(chat.view.spans)):
        return None
    leaves, messages = chat.marked.leaves, chat.conversation.messages
    staying = [n for n in chat.view.spans if messages[leaves[n][0]]["role"] not in _SYSTEM]
    for number, times in Counter(staying).items():
        if times > 1:
            return refuse(chat, f"the chat template writes message {leaves[number][0] + 1} more than once")
    owners = [leaves[number][0] for number in staying]
    if owners != sorted(owners):
        return refuse(chat, "the chat template writes the messages in another order")
    return None


def _find_left_out(chat: RenderedChat, counts: Counter[str]) -> Problem | None:
    if chat.view is None or len(chat.view.spans) == len(chat.marked.leaves):
        return None
    shown = set(chat.view.spans)
    missing = dict.fromkeys(leaf for number, leaf in enumerate(chat.marked.leaves) if number not in shown)
    rest = {chat.marked.leaves[number] for number in shown}
    for index, kind in missing:
        message = chat.conversation.messages[index]
        if kind == "name":
            continue
        if kind == "reasoning" or (kind == "text" and (index, kind) in rest):
            counts["reasoning_left_out"] += 1  # a text is taken apart only at tags such as </think>
        elif kind == "text" and "tool_calls" in message:
            counts["text_left_out"] += 1
        else:
            what = f"the chat template leaves out the {kind} of message {index + 1} ({message['role']})"
            return refuse(chat, what)
    return None


def _find_tool_fault(frame: Frame, chat: RenderedChat) -> Problem | None:
    """What stands in no mark (tools, ids, names of arguments) must be seen, and must hold no special token."""
    tools, messages = chat.conversation.tools, chat.marked.messages
    if not tools and all(len(message) == 2 for message in messages):
        return None
    names = [tool.get("function", tool).get("name") for tool in tools or []]
    if names and not any(str(name) in chat.plain for name in names):
        return refuse(chat, f"the chat template does not show the row's tools: {', '.join(map(str, names))}")
    unmarked = _SPAN.sub("", json.dumps([tools, messages], ensure_ascii=False))
    for found in frame.special.pattern.findall(unmarked):
        if not (frame.cuts.assistant and frame.cuts.assistant.fullmatch(found)):
            what = f"the row's tools, or the ids or arguments of its calls, hold the special token {found!r}"
            return refuse(chat, what, fix="write it in another way; only in messages can it be kept as plain text")
    return None
