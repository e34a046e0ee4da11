"""How frameworks name handoffs and agents: a table of conventions, and what it makes of tools, results and prompts.

Everything that knows a framework by its habits stands in the tables below and nowhere else; `handoffs:` in the
configuration adds an operator's own lines in front of them. Names are compared as slugs, because a tool's name has lost
its agent's case and spaces; what is shown is the name as an agent, a description or a tool's result wrote it.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from handrail.config import HandoffsConfig
from handrail.dialects import text
from handrail.event import Manner

HandoffKind = Manner
"""transfer: the target goes on in place of the source. delegate: the target answers, and the source goes on."""


class Meant(msgspec.Struct, frozen=True):
    """What a tool means where it is a handoff tool."""

    kind: HandoffKind
    target: str | None = None
    """Name of the target where the tool alone says it."""
    argument: str | None = None
    """The argument that names the target where the tool does not."""
    is_named: bool = False
    """The target's name is as the framework shows it, not as a tool's name spells it."""


BY_ARGUMENT: Mapping[str, tuple[HandoffKind, tuple[str, ...]]] = {
    "transfer_to_agent": ("transfer", ("agent_name", "agent", "name", "target")),
    "handoff_to_agent": ("transfer", ("agent_name", "agent", "name", "target")),
    "handoff": ("transfer", ("agent_name", "agent", "target", "to")),
    "delegate_work_to_coworker": ("delegate", ("coworker", "co_worker")),
    "ask_question_to_coworker": ("delegate", ("coworker", "co_worker")),
    "delegate_to_agent": ("delegate", ("agent_name", "agent", "name", "target")),
}
"""Slug of a tool → kind, and the arguments of which the first that is there names the target."""

SOMEBODY = re.compile(
    r"(?:(delegate|assign|give)|transfer|forward|route|hand_?off)_(?:(task|work)_)?to_(?:an?_|the_)?(?:team_)?"
    r"(agent|member|co_?worker|worker|assistant|expert|specialist|sub_?agent|teammate)"
)
"""Slugs of tools whose name says no more of the target than what it is; an argument names it. With a task it is a
delegation, which is answered."""

BY_NAME: tuple[tuple[re.Pattern[str], HandoffKind], ...] = tuple(
    (re.compile(pattern), kind)  # type: ignore[misc]
    for pattern, kind in (
        (r"transfer_back_to_(.+)", "transfer"),
        (r"transfer_to_(.+)", "transfer"),
        (r"transfer(?:_conversation)?_to(?=[A-Z])(.+)", "transfer"),
        (r"hand_?off_to_(.+)", "transfer"),
        (r"hand_?off_?[tT]o(?=[A-Z])(.+)", "transfer"),
        (r"transferTo(?=[A-Z_])_?(.+)", "transfer"),
        (r"delegate_(?:work_|task_)?to_(.+)", "transfer"),
        (r"delegateTo(?=[A-Z_])_?(.+)", "transfer"),
    )
)
"""Whole names of tools, the target in the group. Ask-style names are free, so those are known by nesting alone."""

NAMESPACE = re.compile(r"\A[A-Za-z0-9_]+?[-:/]")
"""What may stand before a tool's own name: the plugin that it is of."""

BY_DESCRIPTION: tuple[re.Pattern[str], ...] = tuple(
    re.compile(pattern)
    for pattern in (
        r"Handoff to the (.{1,128}) agent to handle the request\.",
        r"Ask agent '([^'\n]{1,128})' for help\.?\Z",
        r"Ask another agent for help: ([^\n]{1,128}?)\.?\Z",
        r"Handoff to ([^\s.][^.\n]{0,127})\.\Z",
        r"Transfer(?:red)? (?:the (?:conversation|user|task) )?to (?:the )?agent '?([^'.\n]{1,128})'?\.?\Z",
    )
)
"""Descriptions that frameworks write for handoff tools, from their first character, the agent's name in the group."""

PEOPLE = frozenset({"user", "human", "human_agent_operator", "customer", "human_operator"})
"""Targets that are no agents: control goes back to a person."""

REJECTED = re.compile(
    r"\s*(?:error\b|an error (?:has )?occurred|exception\b|traceback\b|tool error|validation error|invalid (?:tool|arg)"
    r"|\[?(?:tool )?\S+ (?:is not a valid tool|not found)|failed to (?:call|invoke|execute|transfer)"
    r"|unknown (?:agent|tool)|no such (?:agent|tool)|agent \S+ not found)",
    re.IGNORECASE,
)
IGNORED = re.compile(r"multiple handoffs|ignoring this|handoff (?:was )?ignored|only one handoff", re.IGNORECASE)
RESULT_NAMES: tuple[re.Pattern[str], ...] = (
    re.compile(r'\s*\{\s*"assistant"\s*:\s*"([^"\\]{1,128})"\s*\}\s*\Z'),
    re.compile(r"\s*(?:Successfully )?[Tt]ransferred (?:back )?to ([^.,\n]{1,128}?)(?:[.,\n]|\s*\Z)"),
)
"""Results of handoff tools that say the target's true name."""

WAY_BACK = re.compile(r"\s*(?:Successfully )?[Tt]ransferred back to ([^.,\n]{1,128}?)(?:[.,\n]|\s*\Z)")
"""A result that stands last in the history of the agent that it names: control came back to it."""

SOURCE: tuple[re.Pattern[str], ...] = (
    re.compile(r"^Previous agents who worked on this: (?:[^\n]{1,4096} → )?([^\n→]{1,128})$", re.MULTILINE),
)
"""First words of a target in which a framework says who worked on it, the last of them the source."""

STRONG_SPEAKER: tuple[re.Pattern[str], ...] = (
    re.compile(r'Your internal name is "([^"\n]{1,128})"'),
    re.compile(r"You are ([^.\n]{1,128})\.[^\0]*?\nYour personal goal is:"),
)
"""System prompts in which a framework itself says who speaks."""

OPENING_SPEAKER: tuple[re.Pattern[str], ...] = (
    re.compile(r"You(?:'re| are) a helpful agent named '([^'\n]{1,128})'\."),
)
"""First words of a user in which a framework itself says who is spoken to, since all its agents have one prompt."""

WEAK_SPEAKER: tuple[re.Pattern[str], ...] = (
    re.compile(r"\b[Yy]our name is \"?([A-Z][\w .-]{0,60}?)\"?(?:[.,;:\n]|\Z)"),
    re.compile(r"\AYou are (?:the |an? )?\"?([\w-]+(?: [\w-]+){0,3})\"?(?: ?[.,;:(\n–—-]|\s*\Z)"),
)
"""System prompts in which a person is likely to have said who speaks."""

NOBODY = re.compile(
    r"(?:\w+[ _-])*(?:helpful|ai|general|intelligent|friendly|expert|smart|good|research|coding|world[ _-]class)?[ _-]*"
    r"(?:assistant|ai|model|chatbot|bot|llm|language model|expert|system)|an?|in|not|now|going|able|responsible|part",
    re.IGNORECASE,
)
"""What such a prompt says of everybody."""

QUOTED_CALL_IDS = re.compile(
    r'\\?"(?:call_id|tool_call_id|tool_use_id)\\?"\s*:\s*\\?"([^"\\\s]{1,128})'
    r"|'id': '([^'\\\s]{1,128})', 'type': 'function'"
)
"""Ids of calls inside a text, where a history was written into one message: as JSON, or as Python shows a call."""

INLINE_NAME = re.compile(r"<name>([^<]{1,128})</name>\s*<content>(.*)</content>\s*\Z", re.DOTALL)
"""An assistant's name and words in its text, for APIs that have no field for a name."""

TOOL_VERBS = re.compile(r"\A(?:ask|call|consult|invoke|query|run|use|to|contact|request)_+|_+(?:tool|as_tool)\Z")
"""What the name of an agent as a tool has beside the agent's."""


def slug(name: str) -> str:
    """A name as tool names spell it: lower case, every run of anything else than letters and digits one `_`."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or name


def stem(name: str) -> str:
    """A slug without the word agent, which prompts and tool names leave out at will."""
    short = re.sub(r"(?:\A|_)agent(?=_|\Z)", "", slug(name)).strip("_")
    return short or slug(name)


class _ToolLine(msgspec.Struct, frozen=True):
    pattern: re.Pattern[str]
    target: str | None
    argument: str | None
    kind: HandoffKind


class _AgentLine(msgspec.Struct, frozen=True):
    agent: str
    system: re.Pattern[str] | None
    tool: str | None


def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile("(.*)".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)


class Conventions:
    """The tables with an operator's lines in front."""

    def __init__(self, config: HandoffsConfig) -> None:
        self._tools = tuple(_ToolLine(_glob(line.tool), line.target, line.argument, line.kind) for line in config.tools)
        self._not = tuple(_glob(pattern) for pattern in config.ignore)
        self._agents = tuple(
            _AgentLine(line.agent, None if line.system is None else _glob(line.system), line.tool)
            for line in config.agents
        )

    def meant(self, name: str, description: str) -> Meant | None:
        """What a tool means by its name and description; None where it is no handoff tool by any of them."""
        for pattern in self._not:
            if pattern.fullmatch(name):
                return None
        for line in self._tools:
            if match := line.pattern.fullmatch(name):
                target = line.target or (match[1] if line.argument is None and match.groups() else None)
                return Meant(line.kind, target or None, line.argument, line.target is not None)
        short = slug(name)
        if (by := BY_ARGUMENT.get(short)) is not None:
            return Meant(by[0], None, ",".join(by[1]))
        if (somebody := SOMEBODY.fullmatch(short)) is not None:
            noun = somebody[3]
            names = [f"{noun}_id", f"{noun}_name", noun, "agent_name", "agent_id", "agent", "name", "target", "to"]
            return Meant("delegate" if somebody[1] or somebody[2] else "transfer", None, ",".join(names))
        described = _first(BY_DESCRIPTION, description)
        bare = NAMESPACE.sub("", name)
        for pattern, kind in BY_NAME:
            if match := pattern.fullmatch(name) or pattern.fullmatch(bare):
                raw = text(match[1].strip("_"))
                if raw is None or slug(raw) in PEOPLE:
                    return None
                if described is not None and stem(described) == stem(raw):
                    return Meant(kind, described, None, True)
                return Meant(kind, raw)
        if described is not None and slug(described) not in PEOPLE:
            return Meant("transfer", described, None, True)
        return None

    def target(self, meant: Meant, arguments: object) -> str | None:
        """The target of a call of a handoff tool."""
        if meant.argument is None:
            return meant.target
        if type(arguments) is dict:
            for name in meant.argument.split(","):
                if (said := text(arguments.get(name))) is not None:
                    return said.strip(" \"'\n") or None
        return meant.target

    def mapped(self, system: str, tools: Mapping[str, Any]) -> str | None:
        """Who speaks by the operator's word."""
        for line in self._agents:
            if (line.system is None or line.system.search(system)) and (line.tool is None or line.tool in tools):
                return line.agent
        return None


def speaker(system: str) -> tuple[str | None, str | None]:
    """Who a system prompt says is speaking: as a framework writes it, and as a person may have."""
    strong = _found(STRONG_SPEAKER, system) if "Your " in system else None
    if strong is not None:
        return strong, None
    weak = _found(WEAK_SPEAKER, system[:512].lstrip())
    if weak is not None and NOBODY.fullmatch(weak):
        weak = None
    return None, weak


def spoken_to(words: str) -> str | None:
    """Who is spoken to, where a framework says it in a user's first words."""
    return _found(OPENING_SPEAKER, words[:512]) if "agent named '" in words[:512] else None


def back_at(result: str) -> str | None:
    """Who speaks again, where the last result in a history says it."""
    return _first((WAY_BACK,), result[:512])


def source_in_words(words: str) -> str | None:
    """Who handed over, where the target's first words say it."""
    return _found(SOURCE, words) if "Previous agents" in words else None


def name_in_result(result: str) -> str | None:
    """The target's true name where a handoff tool's result says it."""
    return _first(RESULT_NAMES, result[:512])


def _first(patterns: tuple[re.Pattern[str], ...], value: str) -> str | None:
    for pattern in patterns:
        if match := pattern.match(value):
            return text(match[1].strip())
    return None


def _found(patterns: tuple[re.Pattern[str], ...], value: str) -> str | None:
    for pattern in patterns:
        if match := pattern.search(value):
            return text(match[1].strip())
    return None
