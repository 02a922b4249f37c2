"""Values and decisions. Nothing in this room opens a socket or a file, reads a clock or runs a loop."""
