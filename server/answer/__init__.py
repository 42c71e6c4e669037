"""Tokens to text: detokenizer, stop strings, choices of an answer, deadlines."""
