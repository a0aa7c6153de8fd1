"""`make demo`: a hub and three operators with virtual arms on one machine, through the commands a person types.

Not used in production, and it reaches around nothing: it starts the programs and runs `zk0ctl` and `zk0-hub`.
"""
