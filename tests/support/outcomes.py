"""What a fault did: recorded by the tests, made into the table of the README by `make chaos`."""

import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

BEGIN, END = "<!-- faults: made by make chaos -->", "<!-- end of faults -->"


@dataclass(frozen=True)
class Outcome:
    """One fault, injected `count` times.

    `saw`: what a person was told; `equal`: how many of them ended as they should: with the bits of the run that
    nothing happened to, or as `saw` says; `again`: the most steps that were done twice; `seconds`: the longest from
    the fault to the first new step, or to the end of the command.
    """

    group: str
    fault: str
    count: int
    saw: str
    equal: int
    again: int | None = None
    seconds: float | None = None


def record(outcome: Outcome) -> None:
    """Keep it for the table, where `make chaos` asks for one."""
    if path := os.environ.get("CHAOS_OUT"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")


def merge(outcomes: list[Outcome]) -> list[Outcome]:
    """One of each fault: times are added, and of the costs the worst is kept."""
    merged: dict[tuple[str, str], Outcome] = {}
    for new in outcomes:
        key = (new.group, new.fault)
        if (old := merged.get(key)) is not None:
            new = replace(
                new,
                count=old.count + new.count,
                equal=old.equal + new.equal,
                again=max((x for x in (old.again, new.again) if x is not None), default=None),
                seconds=max((x for x in (old.seconds, new.seconds) if x is not None), default=None),
            )
        merged[key] = new
    return sorted(merged.values(), key=lambda outcome: outcome.group)


def build_table(outcomes: list[Outcome], seed: int) -> str:
    lines = [
        f"Seed {seed}. Survived: ended with the bits of the run that nothing happened to (weights, optimizer, random "
        "states, metrics, ledger), or as the last column says.",
        "",
        "| | fault | times | survived | steps done again | seconds | what the person saw |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for each in merge(outcomes):
        again = "–" if each.again is None else str(each.again)
        seconds = "–" if each.seconds is None else f"{each.seconds:.1f}"
        saw = each.saw.replace("|", "\\|")
        lines.append(f"| {each.group} | {each.fault} | {each.count} | {each.equal} | {again} | {seconds} | {saw} |")
    return "\n".join(lines)


def main() -> None:
    """Write the table from the recorded outcomes into a file between the two marks."""
    source, target, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    outcomes = [Outcome(**json.loads(line)) for line in source.read_text(encoding="utf-8").splitlines()]
    text = target.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = build_table(outcomes, seed)
    target.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
