"""What the daemon senses of the machine and its owner, each source behind one small interface. Not for deciding."""
