"""Training workers: initial version, local steps, evaluation, publishing. Reached only as processes (zk0d/worker.py).

The only room besides `robot` that imports torch and lerobot, and it does so inside functions: importing takes seconds.
"""
