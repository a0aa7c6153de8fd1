"""zk0d: the operator's daemon (arbiter, workers, control socket, link to the hub). Never imports torch."""
