"""Tests of `evenflow.export`."""
