"""worldflow: learn a simulator from recorded trajectories, then step it, plan in it, score with it."""

__version__ = "0.1.0"
__all__ = ["__version__"]
