"""The servers that are compared. Each offers one tool, `echo(text) -> text`; ours has all our others too."""
