"""zk0-hub: the broker (registry, rounds, admission, aggregation, ledger). Never imports torch."""
