"""Contracts with outside systems: what the product relies on, held against the real thing."""
