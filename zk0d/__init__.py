"""zk0d: federated learning for robot policies, the edge daemon, its control and the hub.

This package root holds only what every room shares: errors, durable files, the worker channel.
It imports neither torch nor lerobot; see docs/architecture.md for the rooms.
"""

__version__ = "0.1.0"
