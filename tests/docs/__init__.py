"""Tests of the documentation: it builds, and what it says to type works."""
