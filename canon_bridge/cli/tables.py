"""Plans and audits as tables that fit the terminal; what has no room is in ``--json``."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from canon_bridge import Audit, Plan
from canon_bridge.cli.names import braced
from canon_bridge.core import Merge, Untangled

BAD = "bold red"


def new_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return an empty table; the columns named in ``right`` are aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        is_right = column in right
        table.add_column(column, justify="right" if is_right else "left", no_wrap=is_right, overflow="fold")
    return table


def plan_tables(plan: Plan) -> Iterator[RenderableType]:
    """Yield what there is to say of a plan: the totals, the ways, a line for each BatchNorm, and what else changes."""
    options = plan.options
    yield Text.assemble(
        (plan.model, "bold"), f"  prefer={options.prefer}, clipped={options.clipped}, leftover={options.leftover}"
    )
    yield Text(plan.total().removeprefix("total: "))
    if plan.entries:
        ways = _ways(plan)
        yield Text()
        yield _way_table(plan, ways)
        yield Text()
        yield _entry_table(plan, ways)
        if any(entry.norm.count(".") > 1 for entry in plan.entries):
            yield Text("A name that begins with a dot is inside the module above it.", style="dim")
    made = _made(plan)
    if made.row_count:
        yield Text()
        yield made
    if plan.uncovered:
        yield Text()
        yield Text("Operations without a rule; in their place the map has a gradient:", style=BAD)
        for found in plan.uncovered:
            yield Text(f"- {found.where}", overflow="fold")
            yield Padding(Text(found.reason), (0, 0, 0, 2))


def _ways(plan: Plan) -> dict[tuple[str, ...], str]:
    """Return a letter for each thing that happens to BatchNorms, the most frequent first."""
    return {group: _letter(index) for index, (group, _) in enumerate(plan.ways())}


def _letter(index: int) -> str:
    before, last = divmod(index, 26)
    return (_letter(before - 1) if before else "") + chr(ord("A") + last)


def _way_table(plan: Plan, ways: dict[tuple[str, ...], str]) -> Table:
    counts = {group: len(entries) for group, entries in plan.ways()}
    bad = {entry.group for entry in plan.refusals}
    table = new_table("way", "count", "what happens", "through, or why", right=("count",))
    for group, letter in ways.items():
        table.add_row(letter, str(counts[group]), *map(Text, group), style=BAD if group in bad else None)
    return table


def _entry_table(plan: Plan, ways: dict[tuple[str, ...], str]) -> Table:
    """Return a table with a line for each BatchNorm, below the module that it and its neighbours are in."""
    table = new_table("order", "BatchNorm", "way", "into", right=("order",))
    bad = set(plan.refusals)
    homes = [".".join(entry.norm.split(".")[:-2]) for entry in plan.entries]
    inside = ""
    for number, (entry, home, following) in enumerate(zip(plan.entries, homes, [*homes[1:], ""], strict=True), 1):
        is_excursion = bool(inside) and following == inside and home.startswith(f"{inside}.")
        if home != inside and not is_excursion:
            inside = home
            if inside:
                table.add_row("", Text(inside, style="bold"))
        targets = entry.targets if isinstance(entry, Merge | Untangled) else ()
        into = ", ".join(braced(_below(inside, target) for target in targets)) if targets else entry.row[2]
        style = BAD if entry in bad else None
        table.add_row(str(number), Text(_below(inside, entry.norm)), ways[entry.group], Text(into), style=style)
    return table


def _below(inside: str, path: str) -> str:
    return path.removeprefix(inside) if inside and path.startswith(f"{inside}.") else path


def _made(plan: Plan) -> Table:
    """Return a table of what changes besides BatchNorms, containers that are alike in one line."""
    table = new_table("what else", "where")
    by_children: dict[str, list[str]] = {}
    for rewrite in plan.rewrites:
        if rewrite.children:
            names = ", ".join(braced(name for name, _ in rewrite.children))
            by_children.setdefault(names, []).append(rewrite.path or "the model itself")
    for names, where in by_children.items():
        table.add_row(Text(f"made modules: {names}"), Text(_shortened(where, 8)))
    for what, where in (
        ("computed weight made a parameter", plan.plain),
        ("taken apart", plan.expanded),
        ("stand-in for a further call", tuple(dict.fromkeys(plan.stand_ins.values()))),
        ("made to work out of place", plan.out_of_place),
    ):
        if where:
            table.add_row(what, Text(_shortened(where)))
    return table


def _shortened(paths: Sequence[str], limit: int = 4) -> str:
    names = braced(paths)
    return ", ".join(names) if len(names) <= limit else f"{len(paths)} modules, first {paths[0]}"


def audit_tables(audit: Audit, limit: int = 10) -> Iterator[RenderableType]:
    """Yield an audit: where the score went, in total and at the modules that took or lost most."""
    yield Text.assemble((audit.model, "bold"), f"  {audit.rules}; where f(x) = {audit.score:.6g} went")
    yield Text()
    totals = new_table("where", "relevance", "% of f(x)", right=("relevance", "% of f(x)"))
    for label, value in audit.totals():
        totals.add_row(label, f"{value:.6g}", _percent(audit.share(value), 1))
    yield totals
    yield Text()
    widest = audit.widest
    yield Text(f"defect: {audit.defect:.1e} of |f|, {audit.defect_of_flow:.1e} of the largest flow", overflow="fold")
    largest = f"{widest.flow / audit.scale:.3g} |f|" if audit.scale else f"{widest.flow:.3g}"
    yield Text(f"largest flow: {largest} at {widest.path} ({widest.kind})", overflow="fold")
    yield Text()
    lost = audit.worst(limit)
    table = new_table("module", "rule", "arrived %", "taken %", right=("arrived %",))
    table.title = "Relevance is lost here:" if lost else "Most was absorbed here:"
    table.title_justify = "left"
    table.title_style = BAD if lost else "bold"
    for entry in lost or audit.largest(limit):
        shares = {cause: _percent(audit.share(value), 2) for cause, value in entry.taken.items()}
        taken = ", ".join(f"{cause} {share}" for cause, share in shares.items() if float(share))
        if not taken and table.row_count:
            continue
        rule = entry.rule or ("(own forward)" if entry.is_container else "none: gradient")
        where = Text(entry.path), Text(rule)
        table.add_row(*where, _percent(audit.share(entry.arrived), 2), taken or "-")
    yield table


def _percent(share: float, digits: int) -> str:
    return f"{round(100 * share, digits) + 0.0:.{digits}f}"  # without a sign on zero
