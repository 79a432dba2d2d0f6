"""Experiments that compare this system with what it replaces: `ouzel experiment NAME`."""
