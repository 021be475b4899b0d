#!/usr/bin/env python3
"""Make docs/metrics.md from sidecar/telemetry/table.py.

scripts/metrics_doc.py
"""

import sys
from pathlib import Path
from types import SimpleNamespace

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sidecar.telemetry.instruments import Counter, Gauge, Histogram  # noqa: E402
from sidecar.telemetry.page import Page  # noqa: E402
from sidecar.telemetry.table import Instruments  # noqa: E402

PAGE = ROOT / "docs" / "metrics.md"
HEAD = """\
# Metrics

<!-- Made from sidecar/telemetry/table.py by `make generate`. -->

`GET /metrics` on the admin port has them all, and so has `--prometheus-port`, which serves nothing
else. `--otlp-endpoint` pushes the same to a collector once a minute, under the names below without
their unit and with `lmcache_mp.` in front. Names, units and labels are those of LMCache 0.5.6 where
it has the metric.

Every metric is there from the start. Before its first use a counter or histogram has one series of
zero with empty labels; then one for each set of label values, 200 at most: further ones are counted
under `other`. Every sample also has the labels `otel_scope_name`, `otel_scope_version` and
`otel_scope_schema_url`; `target_info` has the version and `--instance-id` of the server.

A histogram `x` is three metrics: `x_bucket` (with the label `le`), `x_sum` and `x_count`.
Alerts on them, and a dashboard: [operate](operate.md#prometheus-and-grafana).
"""


def page() -> str:
    """The whole text."""
    parts = [HEAD]
    for group, instruments in Instruments().groups.items():
        parts.append(f"\n## {group}\n\n| metric | kind | labels | |\n|---|---|---|---|\n")
        parts += [row(instrument) for instrument in instruments]
    return "".join(parts)


def row(instrument: Counter | Histogram | Gauge) -> str:
    about = instrument.description
    labels = ", ".join(f"`{label}`" for label in about.attributes([""] * len(about.labels)))
    name, kind = exported(instrument)
    return f"| `{name}` | {kind} | {labels} | {about.text} |\n"


def exported(instrument: Counter | Histogram | Gauge) -> tuple[str, str]:
    """Name and kind as a scraper sees them, asked of the page itself."""
    only = SimpleNamespace(counters=[], histograms=[], gauges={})
    if isinstance(instrument, Counter):
        only.counters.append(instrument)
    elif isinstance(instrument, Histogram):
        only.histograms.append(instrument)
    else:
        only.gauges["it"] = instrument
    text = Page(only, "").render().decode()  # type: ignore[arg-type]
    (family,) = [f for f in text_string_to_metric_families(text) if f.name.startswith("lmcache")]
    return family.name + ("_total" if family.type == "counter" else ""), family.type


if __name__ == "__main__":
    PAGE.write_text(page())
