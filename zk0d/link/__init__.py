"""What both ends of the link share: identity, TLS tunnel, gate, messages, transfers. Knows neither daemon nor hub."""
