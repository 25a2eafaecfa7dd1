"""Messages and tools as data sets write them, brought to the one form that chat templates take."""

import difflib
from collections.abc import Iterable
from typing import Any

from sftray.train_fn.json_lines import name_type
from sftray.train_fn.json_text import parse_json

Message = dict[str, Any]
Tool = dict[str, Any]
Path = tuple[str | int, ...]

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_TEXT_FIELDS = ("tool_call_id", "name", "reasoning_content")
_CALL_FIX = 'write it as {"function": {"name": "…", "arguments": {…}}}'


class RowFault(ValueError):
    """What is wrong with one row; `path` leads to the value at fault."""

    def __init__(self, what: str, path: Path = (), *, fix: str, why: str | None = None) -> None:
        super().__init__(what)
        self.what, self.path, self.why, self.fix = what, path, why, fix


def read_messages(value: Any, path: Path) -> list[Message]:
    """The messages of a list, or of the JSON text of one. Raises `RowFault`, also if there is none."""
    items = _read_list(value, path)
    if not items:
        raise RowFault("the row has no messages", path, fix="give it at least a user's and an assistant's message")
    return [
        # Nearly all messages are plain, and are taken as they are: this line decides the speed of reading.
        item
        if type(item) is dict
        and len(item) == 2
        and type(item.get("content")) is str
        and type(role := item.get("role")) is str
        and role in ROLES
        else _read_message(item, (*path, index))
        for index, item in enumerate(items)
    ]


def read_content(value: Any, path: Path) -> str:
    """A text, or a list of text parts, which are joined."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RowFault(f"{path[-1]} must be text, found {name_type(value)}", path, fix="write it as a string")
    return "".join(_read_part(part, (*path, index)) for index, part in enumerate(value))


def read_tools(value: Any, path: Path) -> list[Tool] | None:
    """Descriptions of tools, each as `{"type": "function", "function": {…}}`; None if there are none."""
    tools = _read_list(value, path)
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            fix = 'write each tool as {"type": "function", "function": {"name": "…", …}}'
            raise RowFault(f"a tool must be an object, found {name_type(tool)}", (*path, index), fix=fix)
    bare = ("function", "type")
    return [
        {"type": "function", "function": tool} if "name" in tool and not any(key in tool for key in bare) else tool
        for tool in tools
    ] or None


def find_near(names: Iterable[str], known: Iterable[str]) -> str:
    """` Did you mean …?` for the first name that is near a known one, or nothing."""
    pool = sorted(known)
    for name in names:
        if near := difflib.get_close_matches(name.lower(), pool, n=1):
            return f". Did you mean {near[0]}?"
    return ""


def is_given(value: Any) -> bool:
    """Not absent, nor one of the fillers that tables put where a row has nothing."""
    return value is not None and value != "" and value != []


def _read_list(value: Any, path: Path) -> list[Any]:
    if isinstance(value, str):
        value = _parse_text(value, path, fix="write it as a list")
    if not isinstance(value, list):
        raise RowFault(f"{path[-1]} must be a list, found {name_type(value)}", path, fix="write it as a list")
    return value


def _parse_text(text: str, path: Path, fix: str) -> Any:
    """The value of JSON that is inside a string."""
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        raise RowFault(f"the text of {path[-1]} is not JSON", path, why=str(error), fix=fix) from None


def _read_message(item: Any, path: Path) -> Message:
    if not isinstance(item, dict):
        fix = 'write each message as {"role": "user", "content": "…"}'
        raise RowFault(f"a message must be an object, found {name_type(item)}", path, fix=fix)
    is_sharegpt = "from" in item and item.get("role") is None
    role_key, content_key = ("from", "value") if is_sharegpt else ("role", "content")
    role = _read_role(item, role_key, path)
    content, calls, calls_key = item.get(content_key), item.get("tool_calls"), "tool_calls"
    if is_sharegpt and item["from"] == "function_call":
        content, calls, calls_key = None, content, content_key
    message: Message = {"role": role, "content": None}
    if content is not None:
        message["content"] = read_content(content, (*path, content_key))
    if is_given(calls):
        if role != "assistant":
            raise RowFault(f"a {role} cannot call tools", (*path, calls_key), fix="move tool_calls to an assistant")
        message["tool_calls"] = _read_calls(calls, (*path, calls_key))
    elif content is None:
        near = find_near([key for key in item if key != role_key], [content_key])
        fix = f"give it {content_key}; only an assistant with tool_calls may have none"
        raise RowFault(f"the message has no {content_key}{near}", path, why=f"its keys: {', '.join(item)}", fix=fix)
    for field in _TEXT_FIELDS:
        if is_given(item.get(field)):
            message[field] = _read_text(item[field], (*path, field))
    if role in ("system", "developer") and is_given(item.get("tools")):
        message["tools"] = item["tools"]  # MiniMind keeps a row's tools here
    return message


def _read_role(item: Message, key: str, path: Path) -> str:
    name = item.get(key)
    if name is None:
        near = find_near(item, ["role"])
        why = f"its keys: {', '.join(item) or 'none'}"
        raise RowFault(f"the message has no role{near}", path, why=why, fix=f"roles are {', '.join(sorted(ROLES))}")
    name = _read_text(name, (*path, key))
    role = _SHAREGPT_ROLES.get(name, name) if key == "from" else name
    if role in ROLES:
        return role
    known = ROLES | _SHAREGPT_ROLES.keys() if key == "from" else ROLES
    meant = _SHAREGPT_ROLES.get(name.lower())
    near = f". Did you mean {meant}?" if meant else find_near([name], known)
    raise RowFault(f"{name!r} is not a role{near}", (*path, key), fix=f"roles are {', '.join(sorted(known))}")


def _read_text(value: Any, path: Path) -> str:
    if not isinstance(value, str):
        raise RowFault(f"{path[-1]} must be text, found {name_type(value)}", path, fix="write it as a string")
    return value


def _read_part(part: Any, path: Path) -> str:
    kind = part.get("type", "an object without type") if isinstance(part, dict) else name_type(part)
    if kind == "text":
        return _read_text(part.get("text"), (*path, "text"))
    raise RowFault(
        f"a part of {path[-2]} is not text, but {kind}",
        path,
        why="the model learns from text only",
        fix='keep only parts such as {"type": "text", "text": "…"}, or write a string',
    )


def _read_calls(value: Any, path: Path) -> list[dict[str, Any]]:
    """Calls as a list, one call, or the JSON text of either."""
    if isinstance(value, str):
        value = _parse_text(value, path, fix=_CALL_FIX)
    if isinstance(value, dict):
        return [_read_call(value, path)]
    return [_read_call(call, (*path, index)) for index, call in enumerate(_read_list(value, path))]


def _read_call(call: Any, path: Path) -> dict[str, Any]:
    """A call as `{"id": …, "type": "function", "function": {"name": …, "arguments": {…}}}`; the id if given."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowFault("a tool call must name its function", path, fix=_CALL_FIX)
    arguments = function.get("arguments")
    if not is_given(arguments):
        arguments = {}
    elif isinstance(arguments, str):
        arguments = _parse_arguments(arguments)
    elif not isinstance(arguments, dict):
        raise RowFault(f"arguments must be an object, found {name_type(arguments)}", path, fix=_CALL_FIX)
    given_id = {"id": call["id"]} if is_given(call.get("id")) else {}
    return {**given_id, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _parse_arguments(text: str) -> dict[str, Any] | str:
    """The object that the text is, which templates write as JSON again; else the text itself."""
    try:
        parsed = parse_json(text)
    except (ValueError, RecursionError):
        return text
    return parsed if isinstance(parsed, dict) else text
