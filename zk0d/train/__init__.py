"""The trainer and evaluator workers: the only part of the package that imports torch and lerobot."""
