"""The vocabulary of targets, and the probability of a word."""
