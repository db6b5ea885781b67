"""Asking a person: questions bound to exactly what was shown, answers that work once."""
