"""The command line: arguments, exit codes, what a person reads."""
