"""One module a command: each parses, calls one function of the core and prints what it returns."""
