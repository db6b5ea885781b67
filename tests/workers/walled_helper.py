"""What walled_functions.py imports: it has to come along into the sandbox."""

GREETING = "hello"
