"""The vocabulary of targets, and what a head says of a word."""
