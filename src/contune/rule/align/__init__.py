"""Heads set right from statistics of classes."""
