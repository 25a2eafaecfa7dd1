"""The YAML that configs are written in: text to nodes, values to one line, and syntax errors in plain words.

It is PyYAML's safe YAML 1.1 with two changes: `1e-4` is a number (YAML 1.1 wants `1.0e-4`, and reads text),
and a date is text. Depth and size are bounded, so that a hostile file cannot fill the memory.
"""

import math
import re
from decimal import Decimal

import yaml
from yaml.nodes import Node, ScalarNode
from yaml.reader import Reader

from sftray.train_fn.errors import Problem

MAX_DEPTH = 24
MAX_NODES = 20_000

CORE = "tag:yaml.org,2002:"
EXPONENT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
_EASY_TEXT = re.compile(r"[\w./](?:[\w./+=@:-]*[\w./+=@-])?", re.ASCII)

# What PyYAML says -> what is wrong, how to mend it. The first that is contained counts.
_WORDS: tuple[tuple[str, str, str], ...] = (
    ("invisible", "an invisible character stands here: {seen}", "delete the character"),
    (
        r"'\t' that cannot start",
        "a tab stands where YAML allows only spaces",
        "put spaces in place of the tab: 2 for each level",
    ),
    (
        "that cannot start any token",
        "a value cannot begin with {seen}",
        'put the whole value between quotes: "…"',
    ),
    (
        "mapping values are not allowed here, again",
        "there is a second ': ' on this line",
        "put a text that holds ': ' between quotes",
    ),
    (
        "mapping values are not allowed",
        "this line is indented too deep, or the one above is no 'key: value' pair",
        "write key: value, and begin all keys of one section in the same column",
    ),
    (
        "sequence entries are not allowed",
        "a list cannot begin with '- ' behind a key",
        "write [a, b], or one '- a' a line below the key",
    ),
    ("expected the node content", "a value cannot begin with {seen}", 'put the whole value between quotes: "…"'),
    (
        "could not find expected ':'",
        "this line is not a 'key: value' pair",
        "write key: value, with a space behind the colon",
    ),
    (
        "but found another document",
        "a second document begins here, and a config is one document",
        "delete the line '---' and what does not belong",
    ),
    (
        "while scanning an alias",
        "a value that begins with * is an alias in YAML",
        'put a pattern such as "*.jsonl" between quotes',
    ),
    (
        "undefined alias",
        "the alias *{seen} has no anchor &{seen} above it",
        "define the anchor first, or quote the text",
    ),
    ("duplicate anchor", "the anchor &{seen} is defined twice", "give the second anchor another name"),
    ("tag handle", "the tag {seen} is not known, and a config needs no tags", "delete the tag"),
    (
        "unknown escape character",
        "\\ begins an escape between double quotes, and {seen} is none",
        "write the text between single quotes: '…'",
    ),
    (
        "while scanning a quoted scalar",
        "a quote opened here is never closed",
        "close the quote on the same line",
    ),
    (
        "while parsing a flow",
        "a [list] or {{mapping}} opened here is not closed, or lacks a comma",
        "close the bracket, and part the entries by ', '",
    ),
    (
        "expected <block end>",
        "this does not fit what stands above it",
        "begin all keys of one section in the same column, and write nothing behind a closing quote or bracket",
    ),
    (
        "too deep",
        f"this is nested more than {MAX_DEPTH} levels deep, or an alias holds itself",
        "make it flatter, or take the alias away",
    ),
    ("too large", f"the config holds more than {MAX_NODES:,} values, aliases unfolded", "make it smaller"),
)
# Errors that are noticed later than where they begin: they are shown at the beginning.
_BEGINS_EARLIER = ("while scanning a simple key", "while scanning a quoted scalar", "while parsing a flow")


def compose_yaml(text: str) -> Node | None:
    """The one document of `text`, or None if it is empty. Raises MarkedYAMLError (see `syntax_problem`)."""
    if odd := Reader.NON_PRINTABLE.search(text):
        mark = yaml.Mark("", odd.start(), text.count("\n", 0, odd.start()), 0, text, odd.start())
        raise yaml.MarkedYAMLError(problem=f"invisible 'U+{ord(odd.group()):04X}'", problem_mark=mark)
    return _Loader(text).get_single_node()


def implied_tag(node: ScalarNode) -> str:
    """The tag that `node` would have if none were written."""
    plain = node.style is None
    tag: str = _RESOLVER.resolve(ScalarNode, node.value, (plain, not plain))  # type: ignore[no-untyped-call]  # not in the stubs
    return tag


def check_bounds(depth: int, nodes: int, mark: yaml.Mark) -> None:
    """Raises MarkedYAMLError where a config is deeper or larger than any that a person writes."""
    if depth > MAX_DEPTH:
        raise yaml.MarkedYAMLError(problem="too deep", problem_mark=mark)
    if nodes > MAX_NODES:
        raise yaml.MarkedYAMLError(problem="too large", problem_mark=mark)


def syntax_problem(error: yaml.MarkedYAMLError) -> tuple[int, Problem]:
    """The 1-based line of a syntax error, and the error in plain words."""
    context, said = error.context or "", error.problem or ""
    if error.problem_mark is not None and ": " in _line_before(error.problem_mark):
        said = said.replace("not allowed here", "not allowed here, again")
    mark = error.problem_mark or error.context_mark
    if error.context_mark is not None and context.startswith(_BEGINS_EARLIER):
        mark = error.context_mark
    line = 1 if mark is None else mark.line + 1
    seen = re.search(r"'(.+?)'|\"(.+?)\"", f"{said} {context}")
    for fragment, what, fix in _WORDS:
        if fragment in f"{context}: {said}":
            return line, Problem(what.format(seen=(seen[1] or seen[2]) if seen else ""), fix=fix)
    return line, Problem(f"this is not YAML: {said}", fix="see the line, and the one above it")


def _line_before(mark: yaml.Mark) -> str:
    """What stands on the line of `mark` before it."""
    return (mark.buffer or "")[: mark.pointer].rpartition("\n")[2]


def write_value(value: object) -> str:
    """`value` as YAML on one line, which reads back as the same value."""
    text: str = yaml.dump(
        value, Dumper=_Writer, default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


class _Loader(yaml.SafeLoader):
    """Composes nodes, and counts them."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = self.nodes = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self.depth, self.nodes = self.depth + 1, self.nodes + 1
        event = self.peek_event()  # type: ignore[no-untyped-call]  # not in the stubs
        check_bounds(self.depth, self.nodes, event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Writer(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag not in (CORE + "timestamp", CORE + "value")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(CORE + "float", EXPONENT, list("-+.0123456789"))
_RESOLVER = _Loader("")
_Writer.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _represent_text(writer: yaml.SafeDumper, text: str) -> ScalarNode:
    node = ScalarNode(CORE + "str", text)
    easy = _EASY_TEXT.fullmatch(text) and implied_tag(node) == node.tag
    return writer.represent_scalar(node.tag, text, style=None if easy else '"')


def _represent_float(writer: yaml.SafeDumper, number: float) -> ScalarNode:
    """2e-05 becomes 2.0e-5, which is a number in YAML 1.1 too. Small numbers are written with an exponent."""
    if not math.isfinite(number):
        return writer.represent_float(number)
    text = f"{Decimal(repr(number)):e}" if 0 < abs(number) < 1e-3 else repr(number)
    digits, _, exponent = text.partition("e")
    if exponent:
        text = f"{digits if '.' in digits else digits + '.0'}e{int(exponent):+d}"
    return writer.represent_scalar(CORE + "float", text)


_Writer.add_representer(str, _represent_text)
_Writer.add_representer(float, _represent_float)
_Writer.add_representer(tuple, yaml.SafeDumper.represent_list)
