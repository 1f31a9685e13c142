"""Environments: pixel tasks, perturbations, recording, and the learned simulator."""
