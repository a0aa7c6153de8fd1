"""The SO-100/SO-101 side: recorder, rollout, device health and the virtual bench.

Reached only as worker processes; it may import lerobot. Not for anything the daemon or the hub needs.
"""
