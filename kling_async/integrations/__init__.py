"""Other people's frameworks, a module each; each needs its own extra."""
