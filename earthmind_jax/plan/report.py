"""A plan as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from earthmind_jax.plan.advice import Change
from earthmind_jax.plan.planning import USABLE, Plan
from earthmind_jax.plan.roofline import Estimate

WIDTH = 34  # of the first column

NAMED = 5  # of the places that send most
LONGEST = 90  # letters of a place
SUSPICIOUS = 1.25
"""From here on devices repeat each other's work; below lie the padding and the rounding of both counts."""


def text(plan: Plan, advice: Sequence[Change]) -> str:
    """All sections."""
    sections = [_head(plan), _memory(plan), _flops(plan), _traffic(plan), _pace(plan), _advice(plan, advice)]
    return "\n\n".join("\n".join(section) for section in sections if section)


def _line(name: str, *values: str) -> str:
    return f"  {name:<{WIDTH}}" + "".join(f"{value:>22}" for value in values)


def _head(plan: Plan) -> list[str]:
    data, fsdp, tensor = plan.sizes
    batch, parts = plan.config.data.batch_size, plan.config.optim.accumulate
    each = batch / (data * fsdp * parts)
    return [
        f"{plan.config.name}: {plan.devices} x {plan.hardware.name}, mesh data={data} fsdp={fsdp} tensor={tensor}",
        f"batch {batch}, {each:g} at a time on a batch shard, {plan.config.data.text_length} tokens and "
        f"{plan.tiles} tile(s) a sample; planned in {plan.seconds:.0f} s"
        + (
            ""
            if plan.compiled is None
            else f" (lowered in {plan.compiled.lowering:.0f} s, compiled in {plan.compiled.compiling:.0f} s)"
        ),
    ]


def _memory(plan: Plan) -> list[str]:
    held, values, limit = plan.held, plan.activations, plan.hardware.memory
    lines = [
        "memory of one device",
        _line("trainable (masters)", gigabytes(held.trainable)),
        _line("frozen", gigabytes(held.frozen)),
        _line("optimiser", gigabytes(held.optimiser)),
        _line("gradients", gigabytes(held.gradients)),
        _line("  these four", gigabytes(held.divisible)),
        _line("  if divided evenly", gigabytes(plan.smallest), f"{_percent(held.divisible / plan.smallest - 1)} over"),
        _line("batch", gigabytes(held.batch)),
        _line("activations saved (estimate)", gigabytes(values.saved)),
        _line("working set of a layer (estimate)", gigabytes(values.working)),
        _line("weights gathered (estimate)", gigabytes(values.gathered)),
        _line("total (estimate)", gigabytes(plan.total), f"{_percent(plan.total / limit)} of {limit / 1e9:.0f}"),
        f"  {'fits' if plan.fits else 'DOES NOT FIT'}: {USABLE:.0%} of the memory is taken to be usable",
    ]
    if plan.compiled is not None:
        lines += [
            _line("XLA, state and batch", gigabytes(plan.compiled.arguments)),
            _line("XLA, temporaries on a CPU", gigabytes(plan.compiled.temporaries)),
            "  (with gradients; a CPU fuses less and keeps float32 and attention scores that accelerators do not)",
        ]
    return lines


def _flops(plan: Plan) -> list[str]:
    lines = ["operations of one step, all devices", _line("", "forward", "backward", "again")]
    for name, e in plan.flops.by_component().items():
        lines.append(_line(name, *(_tera(x) for x in (e.forward, e.backward, e.again))))
    lines.append(_line("model / with recomputation", _tera(plan.flops.model), _tera(plan.flops.executed)))
    if plan.compiled is not None and plan.repeated is not None:
        lines.append(_line("products of the compiled program", _tera(plan.compiled.products * plan.devices)))
        if plan.repeated > SUSPICIOUS:
            lines.append(f"  devices repeat each other's work: {plan.repeated:.2f} times what the step needs")
    return lines


def _traffic(plan: Plan) -> list[str]:
    if plan.compiled is None:
        return []
    lines = ["sent by one device in one step (compiled)", _line("", "calls", "sent", "between hosts")]
    for kind, traffic in plan.compiled.collectives.items():
        if traffic.calls:
            lines.append(_line(kind, f"{traffic.calls:.0f}", gigabytes(traffic.sent), gigabytes(traffic.across)))
    for place, sent in list(plan.compiled.senders.items())[:NAMED]:
        lines.append(f"  {gigabytes(sent):>12}  {place[:LONGEST]}")
    if plan.compiled.unknown_loops:
        lines.append(f"  {plan.compiled.unknown_loops} loops of unknown length are counted once")
    return lines


def _pace(plan: Plan) -> list[str]:
    columns = [("ideal", plan.ideal)] + ([("as compiled", plan.partitioned)] if plan.partitioned else [])

    def row(name: str, value: str, *estimates: Estimate) -> str:
        return _line(name, *(_value(value, estimate) for estimate in estimates))

    estimates = [estimate for _, estimate in columns]
    return [
        "roofline (at the peak rates; best: everything overlaps, worst: nothing does)",
        _line("", *(name for name, _ in columns)),
        row("arithmetic, s", "compute", *estimates),
        row("memory, s", "memory", *estimates),
        row("links, s", "links", *estimates),
        row("step, s", "seconds", *estimates),
        row("MFU", "mfu", *estimates),
        row("tokens / s", "tokens", *estimates),
        row("cost of a step", "price_step", *estimates),
        row("cost of a million tokens", "price_million", *estimates),
    ]


def _value(name: str, estimate: Estimate) -> str:
    value = getattr(estimate, name)
    if name == "mfu":
        return f"{value[1]:.0%} - {value[0]:.0%}"
    if isinstance(value, tuple):
        low, high = sorted(value)
        return f"{low:.3g} - {high:.3g}" if name != "tokens" else f"{low:,.0f} - {high:,.0f}"
    return f"{value:.3g}"


def _advice(plan: Plan, advice: Sequence[Change]) -> list[str]:
    if plan.fits:
        return []
    if not advice or not advice[0].fits:
        return ["what to change", "  nothing among rematerialisation, batch, bfloat16 masters and more fsdp is enough"]
    lines = ["what to change, least loss first"]
    for change in advice:
        lines.append(f"  {' '.join(change.settings)}: {gigabytes(change.total).strip()} ({change.cost})")
    return lines


def gigabytes(number: float) -> str:
    return f"{number / 1e9:,.2f} GB" if number >= 1e7 else f"{number / 1e6:,.3f} MB"


def _tera(number: float) -> str:
    return f"{number / 1e12:,.3f} T" if number >= 1e10 else f"{number / 1e6:,.1f} M"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
