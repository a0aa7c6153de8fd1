"""`make demo`: a hub and three operators with virtual arms on one machine, through the same commands a person types.

Nothing here is used in production, and nothing here reaches around the programs it shows: it starts processes and runs `zk0ctl` and `zk0-hub`.
"""
