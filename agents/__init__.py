"""Agents that plan and learn inside imagined rollouts."""
