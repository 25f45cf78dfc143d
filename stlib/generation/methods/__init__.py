"""The methods: how the panels of a story are drawn. One module each, of the method's name, with its `METHOD`."""

from stlib.generation.methods import autoregressive, consistent, joint, parallel, sequential

METHODS = {"sequential": sequential.METHOD, "parallel": parallel.METHOD, "joint": joint.METHOD,
           "consistent": consistent.METHOD, "autoregressive": autoregressive.METHOD}
