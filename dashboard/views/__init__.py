"""The pages: parse, one read or verb, render."""
