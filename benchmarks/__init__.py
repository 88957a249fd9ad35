"""Benchmarks: commands that print a table, or with --json one object."""
