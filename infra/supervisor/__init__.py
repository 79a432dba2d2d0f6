"""Starts the processes of a run by name, as an operator would, and watches them."""
