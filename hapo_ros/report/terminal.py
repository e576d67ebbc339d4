"""What a demo found, for the terminal: the comparison as a table, the deployment in numbers."""

from hapo_ros.statistics import NO_DIFFERENCE, paired_difference, wilson


def print_results(results: dict, method: str, control: str) -> None:
    """results: those of ``hapo_ros.report.page``; method, control: the arms that are compared with
    each other too."""
    from rich.console import Console
    from rich.table import Table

    arms = results["evaluation"]["arms"]
    base = arms["base"]["successes"]
    first, last = results["evaluation"]["seeds"]
    table = Table(
        "policy",
        "success",
        "95 % interval",
        "difference to base",
        "verdict",
        title=f"{results['task']}, {len(base)} unseen seeds ({first}-{last}), policies alone",
    )
    for name, arm in arms.items():
        successes, n = sum(arm["successes"]), len(arm["successes"])
        low, high = wilson(successes, n)
        row = [name, f"{successes}/{n} = {successes / n:.0%}", f"{low:.0%} to {high:.0%}"]
        if name != "base":
            paired = paired_difference(arm["successes"], base)
            row += [_difference(paired), _verdict(paired, "base")]
        table.add_row(*row)
    console = Console()
    console.print()
    console.print(table)
    against = paired_difference(arms[method]["successes"], arms[control]["successes"])
    total = results["summary"]
    console.print(
        f"{method} against {control}: {_difference(against)}, {_verdict(against, control)}"
    )
    console.print(
        f"deployment: {total['episodes']} episodes, {total['takeovers']} takeovers, intervention "
        f"ratio {total['intervention_ratio']:.1%}"
    )
    console.print("labels recorded: " + ", ".join(f"{n} {c}" for n, c in total["labels"].items()))


def _verdict(paired, other: str) -> str:
    """In words; an interval that leaves out zero with p above 0.05 is called unsettled."""
    if paired.verdict == NO_DIFFERENCE:
        return NO_DIFFERENCE
    settled = "" if paired.p_value < 0.05 else " (unsettled: p above 0.05)"
    return f"{'better' if paired.difference > 0 else 'worse'} than {other}{settled}"


def _difference(paired) -> str:
    interval = f"{paired.low:+.0%} to {paired.high:+.0%}"
    return f"{paired.difference:+.0%} ({interval}, p = {paired.p_value:.2g})"
