"""Reads MIND folders."""
