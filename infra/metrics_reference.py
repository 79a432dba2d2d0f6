"""Renders infra/docs/metrics.md from the declared metrics: `python -m infra.metrics_reference` prints it.

A test holds the page to what this prints.
"""

from infra.config import Config
from infra.metrics import METRICS, PORTS, PROCESSES

HEAD = f"""# Metrics and ports

Every process of a run exports its metrics, as Prometheus text, where `metrics.base_port` is set; a replica does so at
`/metrics` of its API as well. Counters end in `_total`, times are seconds, labels come from small closed sets and never
hold an id.

| port | who listens there |
| --- | --- |
| `serve.port` ({Config().serve.port}) + n − 1 | the API of the n-th replica |
"""


def reference() -> str:
    """The whole page."""
    ports = "".join(
        f"| `metrics.base_port` + {i}, and {PORTS} more for each further one | metrics of the {name} |\n"
        for i, name in enumerate(PROCESSES)
    )
    parts = [HEAD, ports, "\nEverything binds loopback addresses only.\n"]
    for process in ("*", *PROCESSES):
        rows = [m for m in METRICS if m.process == process]
        if rows:
            parts.append(f"\n## {'Every process' if process == '*' else process}\n\n| metric | | labels | |\n")
            parts.append("| --- | --- | --- | --- |\n")
            parts += [f"| `{m.name}` | {m.kind} | {', '.join(m.labels)} | {m.help} |\n" for m in rows]
    return "".join(parts)


if __name__ == "__main__":
    print(reference(), end="")
