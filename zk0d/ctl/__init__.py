"""zk0ctl: the commands and what they print. Imports only the standard library at start-up."""
