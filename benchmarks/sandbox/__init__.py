"""The embedded sandbox beside what else runs Python code, measured in one run."""
