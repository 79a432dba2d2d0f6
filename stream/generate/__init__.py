"""Logs in the MIND format from a stated probabilistic world: `generate_mind`."""

from stream.generate.mind import Generated, generate_mind
from stream.generate.parameters import SCALES, Parameters, Scale

__all__ = ["SCALES", "Generated", "Parameters", "Scale", "generate_mind"]
