"""Model spec, payloads (safetensors), codecs and the blob store. Knows neither daemon nor hub, imports no torch."""
