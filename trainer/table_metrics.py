"""What the tables did, as metrics: rows, bytes, and what became of keys."""

from dataclasses import asdict

from infra.metrics import Metrics
from trainer.state import ModelState


class TableMetrics:
    """Shows a state's tables; counters go up by what happened since the last look, in this process."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._shown: dict[tuple[str, ...], int] = {}

    def show(self, state: ModelState) -> None:
        for name, table in state.tables.items():
            self._metrics.set("ouzel_table_rows", len(table), slot=name)
            self._metrics.set("ouzel_table_bytes", table.memory().total, slot=name)
            for fate, n in asdict(table.counts).items():
                self._count("ouzel_table_keys_total", n, slot=name, fate=fate)
        for slot, n in state.refused.items():
            self._count("ouzel_refused_gradients_total", n, slot=slot)

    def _count(self, metric: str, n: int, **labels: str) -> None:
        of = (metric, *labels.values())
        more = n - self._shown.get(of, 0)
        self._shown[of] = n
        if more > 0:
            self._metrics.add(metric, more, **labels)
