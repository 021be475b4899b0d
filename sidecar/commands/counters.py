"""Reading a scrape of `/metrics`."""


def totals(metrics: str) -> dict[str, float]:
    """By metric the sum over its label values. Raises ValueError for text that is no scrape."""
    # Here, not above: most subcommands do not need it.
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found
