"""Throwaway containers in which a model's code runs, on one Docker engine or several."""
