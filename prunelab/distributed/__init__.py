"""Processes that work on one stage together: who has which sequences, sums over all of them, one word for all."""
